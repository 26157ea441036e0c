"""The Sessions gRPC API.

`server` listens, `guard` lets a call in (place, caller, rights) and turns errors into statuses,
`servicer` does what was asked, `translate` knows both sides' words.
"""
