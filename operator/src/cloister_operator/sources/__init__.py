"""The only package that talks to git servers.

What a server sends is foreign: it is read in a process of its own (`child`), which is given the
address to dial, little memory and little time, and which answers in our own words only.
`transport` speaks HTTPS for it, `trees` makes an archive of what came. `fetcher` starts such
processes and keeps what they fetched (`cache`). Nothing is imported here: the process is to be
small.
"""
