"""Who may talk to the review server: this page's own origin, with the token where one is asked for."""

import hmac
import ipaddress
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from curation.errors import ConfigError

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; media-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}
WHO, TOKEN = "reelset_who", "reelset_token"
"""Cookies: who reviews, and that they may."""
LEAST_TOKEN = 16


@dataclass(frozen=True)
class Guard:
    """What is asked of a request before anything answers it."""

    port: int
    token: str | None = None
    hosts: tuple[str, ...] = LOOPBACK
    """Names by which the server may be called: another name that leads here is another page's trick."""
    proxied: tuple[str, ...] = ()
    """The same, as a proxy before it is called: without a port, or with its own."""

    def refusal(self, request: "Request") -> str | None:
        """Why a request is refused; None where it is not."""
        host = request.headers.get("host", "")
        bare = self.hosts if self.port in (80, 443) else ()
        if host not in {*(f"{name}:{self.port}" for name in self.hosts), *bare, *self.proxied}:
            return "the server does not go by this name"
        origin = request.headers.get("origin")
        if origin is not None and origin not in (f"http://{host}", f"https://{host}"):
            return "the request comes from another page"
        from_site = request.headers.get("sec-fetch-site", "none")
        arrives = request.method == "GET" and request.headers.get("sec-fetch-mode") == "navigate"
        if from_site not in ("same-origin", "none") and not arrives:
            return "the request comes from another page"
        if request.method != "GET" and request.headers.get("content-type", "").split(";")[0] != "application/json":
            return "decisions are sent as JSON"
        if self.token is not None and not self.knows(request.cookies.get(TOKEN, "")) and not self.entering(request):
            return "open the address that the server printed: it has the token"
        return None

    def entering(self, request: "Request") -> bool:
        """Whether a request brings the token along in its address."""
        return request.url.path == "/" and self.knows(request.query_params.get("token", ""))

    def knows(self, token: str) -> bool:
        """Whether this is the token, compared in equal time."""
        return self.token is not None and hmac.compare_digest(token.encode(), self.token.encode())


def checked(host: str, port: int, token: str | None, allow_remote: bool, names: tuple[str, ...]) -> Guard:
    """The guard of a server at `host`. Raises ConfigError where others could reach it and that was not asked for."""
    if not _is_loopback(host):
        if not allow_remote:
            raise ConfigError(f"--host {host} lets other machines in: say --allow-remote, and give a --token")
        if token is None:
            raise ConfigError("--allow-remote needs a --token that only reviewers know")
    if token is not None and not re.fullmatch(rf"[A-Za-z0-9_-]{{{LEAST_TOKEN},200}}", token):
        raise ConfigError(f"--token must be {LEAST_TOKEN} to 200 letters, digits, _ and -")
    own = () if host in ("0.0.0.0", "::") else (f"[{host}]" if ":" in host else host,)
    return Guard(port, token, tuple(dict.fromkeys((*own, *names, *LOOPBACK))), names)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def keep(response: "Response", name: str, value: str) -> None:
    """Set one of our cookies: no script reads it, and no other site's page sends it along."""
    response.set_cookie(name, value, max_age=30 * 86_400, httponly=True, samesite="strict")
