"""The configurations of haproxy and of both squids, as pure functions of the settings.

Nothing that anybody asks for is ever written into them: names and addresses of sandboxes live in
the state file alone. All paths are absolute: squid reads its file again from another directory.
"""

from dataclasses import dataclass
from pathlib import Path

from . import places
from .ranges import DENIED_IPV4, DENIED_IPV6, beyond_v6
from .settings import Settings

FRONT_BUFFER = 65_536
"""Bytes in each buffer of a socket of haproxy, which is near both its ends; the kernel takes them
twice. By itself it takes megabytes for who reads slowly, and one source, which has hundreds of
connections, all the memory of a container. The squids, whose servers may be far, keep the kernel's
own rules: the pod bounds them, by net.ipv4.tcp_rmem and tcp_wmem.
"""


@dataclass(frozen=True)
class Layout:
    """Where things are in the container that the configuration is for."""

    own: Path = places.OWN
    front: Path = places.FRONT
    program: tuple[str, ...] = places.PROGRAM
    has_ipv6: bool = False
    """Whether the pod has IPv6 at all: haproxy does not start when it cannot listen."""


def beyond(per_second: int) -> int:
    """A rate of new connections that no source reaches alone when it is refused above this one."""
    return per_second * 3 // 2


def front(settings: Settings, layout: Layout = Layout()) -> str:
    """haproxy.cfg: bounds for each source, and the source's address for squid."""
    ports = [places.FRONT_PORT, *([places.DIRECT_PORT] if settings.by_name else [])]
    binds = [f"bind 0.0.0.0:{port}" for port in ports]
    if layout.has_ipv6:
        binds += [f"bind [::]:{port} v6only" for port in ports]
    listen = "\n    ".join(binds)
    refused = "crowded or hasty or scarce greedy or pressed fast or overrun eager"
    if settings.by_name:
        refused += " or direct slow fast or direct slower eager"
    pace = f"""
    acl direct dst_port {places.DIRECT_PORT}
    acl slow be_sess_rate(by-name) gt {settings.by_name_per_s}
    acl slower be_sess_rate(by-name) gt {beyond(settings.by_name_per_s)}"""
    direct = "use_backend by-name if direct\n    "
    by_name = f"""
# Who knows of no proxy speaks TLS at once: `by-name` makes a CONNECT of it.
backend by-name
    server by-name {places.LOOPBACK}:{places.BY_NAME_PORT} send-proxy
"""
    return f"""\
global
    log stderr format raw local0 notice
    maxconn {settings.max_connections}
    maxpipes {max(1, settings.max_connections // 8)}
    nbthread {settings.threads}
    stats socket {layout.front / places.RUNTIME_SOCKET} mode 600 level admin
    stats timeout 10s
    tune.rcvbuf.client {FRONT_BUFFER}
    tune.sndbuf.client {FRONT_BUFFER}
    tune.rcvbuf.server {FRONT_BUFFER}
    tune.sndbuf.server {FRONT_BUFFER}

defaults
    mode tcp
    log global
    timeout connect 5s
    timeout client {settings.idle_seconds}s
    timeout server {settings.idle_seconds}s
    option splice-auto
    # What a sandbox does not take ends with its connection: the kernel would keep it for minutes,
    # and a sandbox may leave a hundred connections so in a second.
    option nolinger

frontend sandboxes
    {listen}
    # The agent hears of each connection's end: whose it was, and its bytes in both directions.
    no log
    log {places.LOOPBACK}:{places.LOG_PORT} len 256 format raw local0
    log-format "%ci %cp %U %B"
    stick-table type ipv6 size 128k expire 30s store conn_cur,conn_rate(10s),gpc0
    tcp-request connection track-sc0 src
    acl crowded sc0_conn_cur gt {settings.max_connections_per_source}
    acl hasty sc0_conn_rate gt {settings.connections_per_10s}
    # Many sources together must not take all places from who comes next.
    acl scarce fe_conn gt {settings.scarce}
    acl greedy sc0_conn_cur gt {settings.share}
    # Nor all the decisions that are made in a second: who opens few connections has theirs, and
    # who opens most is refused before others are.
    acl pressed fe_sess_rate gt {settings.connections_per_s}
    acl overrun fe_sess_rate gt {beyond(settings.connections_per_s)}
    acl fast sc0_conn_rate gt {settings.haste}
    acl eager sc0_conn_rate gt {settings.pace}{pace if settings.by_name else ""}
    # The agent reads how many there were, and tells of them.
    tcp-request connection sc-inc-gpc0(0) if {refused}
    tcp-request connection reject if {refused}
    {direct if settings.by_name else ""}default_backend names

backend names
    server names {places.LOOPBACK}:{places.NAMES_PORT} send-proxy-v2
{by_name if settings.by_name else ""}"""


def names(settings: Settings, layout: Layout = Layout()) -> str:
    """squid.conf of the first stage: the name decides, before anybody resolves it."""
    decide = " ".join((*layout.program, "cloister_gateway.helper", "decide"))
    return f"""\
{_common(settings, layout, "names.cloister.dev")}
http_port {places.LOOPBACK}:{places.NAMES_PORT} require-proxy-header
acl front src {places.LOOPBACK}/32
proxy_protocol_access allow front
proxy_protocol_access deny all

# The client's port makes each connection's question its own: no answer serves two connections.
external_acl_type egress ttl=0 negative_ttl=0 cache=0 grace=0 concurrency=1000 queue-size=20000 \
children-startup=1 children-idle=1 children-max=2 ipv4 %>a %>p %#>rm %#>rd %>rP %DATA {decide}
acl named external egress named
acl private external egress private
acl admitted external egress admit

acl connect_port port 443
acl plain_port port 80
acl plain proto HTTP
acl urn proto URN
acl resolved dst all

# The order decides: until `named` has said yes, nothing is looked up.
http_access deny !named
http_access deny urn
http_access deny manager
http_access deny CONNECT !connect_port
http_access deny !CONNECT !plain
http_access deny !CONNECT !plain_port
http_access deny !resolved private
http_access deny inside private
# Once more, should the helper that is told of it be gone.
http_access deny !resolved
http_access deny inside
http_access allow admitted
http_access deny all
deny_info ERR_CLOISTER named
deny_info ERR_CLOISTER private
deny_info ERR_CLOISTER admitted

# TLS goes through the second stage, which looks at the name in it; plain HTTP is checked here,
# where squid writes the Host header after the URL.
cache_peer {places.LOOPBACK} parent {places.SNI_PORT} 0 no-query no-digest no-netdb-exchange \
connect-timeout=5 connect-fail-limit=1000000 name=sni
cache_peer_access sni allow CONNECT
cache_peer_access sni deny all
never_direct allow CONNECT
always_direct allow !CONNECT
nonhierarchical_direct off

# Each request its own connection: so the bound on connections bounds requests.
client_persistent_connections off
# The second stage reports under the source's address; servers are told nothing.
forwarded_for on
request_header_access X-Forwarded-For deny !CONNECT
reply_header_access X-Cache deny all
reply_header_access X-Cache-Lookup deny all
http_upgrade_request_protocols OTHER deny all

access_log none
"""


def sni(settings: Settings, layout: Layout = Layout()) -> str:
    """squid.conf of the second stage: the TLS name must be the one that was asked for."""
    helper = " ".join((*layout.program, "cloister_gateway.helper", "sni"))
    certificate = layout.own / "unused.pem"
    return f"""\
{_common(settings, layout, "sni.cloister.dev")}
# squid wants a certificate to look into TLS at all. It never shows it: it splices, or ends.
http_port {places.LOOPBACK}:{places.SNI_PORT} ssl-bump tls-cert={certificate} \
generate-host-certificates=off
acl first_stage src {places.LOOPBACK}/32
follow_x_forwarded_for allow first_stage
follow_x_forwarded_for deny all
log_uses_indirect_client on
acl_uses_indirect_client off
external_acl_type sni ttl=0 negative_ttl=0 cache=0 grace=0 concurrency=1000 queue-size=20000 \
children-startup=1 children-idle=1 children-max=2 ipv4 %>a %>p %#ssl::>sni %#>rd %>rP %DATA {helper}
acl same_name external sni same
acl connect_port port 443
acl step1 at_step SslBump1

http_access deny !first_stage
http_access deny !CONNECT
http_access deny !connect_port
http_access deny manager
http_access deny inside
http_access allow first_stage
http_access deny all

ssl_bump peek step1
ssl_bump splice same_name
ssl_bump terminate all

forwarded_for delete
access_log none
"""


def _common(settings: Settings, layout: Layout, hostname: str) -> str:
    inside4 = "\n".join(f"acl inside4 dst {each}" for each in DENIED_IPV4)
    inside6 = "\n".join(f"acl inside6 dst {each}" for each in (*DENIED_IPV6, *beyond_v6()))
    return f"""\
visible_hostname {hostname}
unique_hostname {hostname}
pid_filename none
cache_log /dev/null
# What clients write is not told: some of it would come into the log word for word.
debug_options ALL,1 11,0 23,0 33,0
coredump_dir /
via off
cache deny all
digest_generation off
cache_mem 0 MB
memory_pools off
icp_port 0
snmp_port 0
error_directory {layout.own / "errors"}
err_page_stylesheet none
email_err_data off
strip_query_terms on
httpd_suppress_version_string on
global_internal_static off
mime_table /dev/null
pinger_enable off
hosts_file none
dns_nameservers {places.LOOPBACK}
# The agent caches; squid forgets after the second that it cannot do without.
positive_dns_ttl 1 second
negative_dns_ttl 1 second
dns_timeout 10 seconds
ipcache_size 4096
max_filedescriptors {settings.descriptors}
request_header_max_size 64 KB
reply_header_max_size 64 KB
request_start_timeout 30 seconds
request_timeout 30 seconds
connect_timeout 15 seconds
forward_timeout 30 seconds
read_timeout {settings.idle_seconds} seconds
# What a server does not take keeps its buffers, also when who sent it has long gone.
write_timeout 2 minutes
client_lifetime 30 days
half_closed_clients off
pconn_timeout 30 seconds
shutdown_lifetime 20 seconds
server_persistent_connections off
{inside4}
{inside6}
acl inside any-of inside4 inside6
"""
