"""Who has which address in the world of the gateway's tests."""

GATEWAY, GATEWAY6 = "10.90.0.1", "fd90::1"
SERVER, SERVER6, ATTACKER = "151.101.0.10", "2a04:4e42::10", "151.101.0.66"
NAME_SERVER = "151.101.0.53"
PRIVATE, METADATA, CLUSTER = "10.66.0.5", "169.254.169.254", "151.101.7.7"
OTHER_CLUSTER = "151.101.9.9"
INNER6 = ("64:ff9b::a9fe:a9fe", "fd00:ec2::254", "2002:a42:5::1", "2001:0:a42:5::1")
TIMEOUT = 10.0
"""Seconds in which anything there is answered."""
