"""Settings of the proxy in the environment, made such that the libraries of the page can live with
them. Sends nothing."""

import os
import urllib.request
from collections.abc import Iterable
from typing import Final

OWN_NAMES: Final = ("localhost", "127.0.0.1", "::1")
KINDS: Final = ("http", "https", "all")


def keep_own_addresses_direct(also: Iterable[str] = ()) -> str:
    """Let no request to this machine go through a proxy.

    Return what is wrong with the settings, "" if nothing is. Settings with which no library could
    send anything are removed: the page starts without them.
    """
    proxies = urllib.request.getproxies()  # of the system too, on Windows and macOS
    if not any(kind in proxies for kind in KINDS):
        return ""
    _clear()
    for kind in KINDS:
        if url := proxies.get(kind):
            # Desktops write socks://, which means version 5.
            os.environ[f"{kind}_proxy"] = url.replace("socks://", "socks5://", 1)
    direct = [name.strip() for name in proxies.get("no", "").split(",") if name.strip()]
    direct += [name for name in (*OWN_NAMES, *also) if name not in direct]
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join(direct)
    if problem := _problem():
        _clear()
        fix = "give http://host:port or socks5://host:port"
        return f"proxy: {problem}; nothing is sent through it; {fix}"
    return ""


def _clear() -> None:
    for kind in (*KINDS, "no"):
        for name in (f"{kind}_proxy", f"{kind.upper()}_PROXY"):
            os.environ.pop(name, None)


def _problem() -> str:
    """Return why the library that asks the Hub cannot use these settings, "" if it can."""
    import httpx

    try:
        httpx.Client().close()
    except ImportError:
        return "a SOCKS proxy needs the package socksio (pip install socksio)"
    except (ValueError, httpx.InvalidURL) as error:
        return str(error)
    return ""
