"""Serve the page behind the gate, in an empty folder, with what Gradio opens by default closed."""

import errno
import os
import secrets
import socket
import sys
import tempfile
import time
import webbrowser
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import gradio as gr
from starlette.background import BackgroundTask
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response
from starlette.routing import Route

from core import runs
from core.after_training import bundle
from core.after_training.compare import keeper
from core.after_training.export import list_exports
from core.job import RunNotFound, SpecError
from core.runs import Home, queue
from ui import page
from ui.connections import guard, quiet_logs
from ui.gate import (
    Gate,
    GatePolicy,
    PublicUrl,
    is_loopback,
    load_or_create_token,
    login_url,
    own_account_test,
)
from ui.handlers import Handlers
from ui.open_pages import forget_closed_pages
from ui.scratch import make_scratch, remove_scratch
from ui.terminal import interrupts

SECONDS_BETWEEN_LOOKS = 2.0
UPLOADS = "gradio"
"""Folder of the uploads, in that of the temporary files."""
STYLE = Path(__file__).with_name("style.css")
SCRIPTS = tuple(Path(__file__).with_name(name) for name in ("plots.js", "page.js"))
"""Functions without parameters, which the page calls once."""


READABLE_RED, DARKER_RED = "#c03020", "#a02818"
"""Behind white letters."""
VISIBLE_EDGE = "#76859c"
"""Edge of a box to tick, which Gradio draws too faint: contrast above 3 in light and dark."""


def theme() -> gr.themes.Base:
    """Return system fonts, one accent colour, small corners, and grey text that can be read."""
    system = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]
    mono = ["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"]
    return gr.themes.Default(
        primary_hue="blue",
        neutral_hue="slate",
        font=system,
        font_mono=mono,
        radius_size="sm",
        spacing_size="sm",
    ).set(
        body_text_color_subdued="*neutral_500",
        block_info_text_color="*neutral_500",
        checkbox_border_color=VISIBLE_EDGE,
        checkbox_border_color_dark=VISIBLE_EDGE,
        button_cancel_background_fill=READABLE_RED,
        button_cancel_background_fill_dark=READABLE_RED,
        button_cancel_background_fill_hover=DARKER_RED,
        button_cancel_background_fill_hover_dark=DARKER_RED,
    )


def serve(
    *,
    host: str = "127.0.0.1",
    port: int | None = None,
    share: bool = False,
    token: bool = False,
    public_url: Sequence[str] = (),
    data: Sequence[str] = (),
    no_browser: bool = False,
    home: str | None = None,
) -> int:
    """Serve the page until Ctrl-C. Return the exit code."""
    try:
        place = Home.find(home)
        data_folders = [find_folder(each) for each in data]
        policy = policy_for(place, host, public_url, always_asks=token or share)
        _require_free(host, port or 0)
        scratch = isolate(place)
        policy = replace(policy, upload_folder=scratch / UPLOADS)
    except (SpecError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:
        fix = "name a folder that you can write to"
        print(f"home: {error.filename}: {error.strerror}; {fix}", file=sys.stderr)
        return 2
    _keep_advancing(place)
    handlers = Handlers(place, data_folders)
    blocks = page.build(handlers)
    try:
        launch(blocks, place, policy, port, share)
    except OSError as error:
        print(f"port: {error}", file=sys.stderr)
        return 2
    link = _print_links(blocks, policy, share)
    _print_gift(policy, place, data_folders)
    # Other users could read a token from the command line of the browser.
    if not (no_browser or policy.asks_everyone):
        webbrowser.open(link)
    return _wait(blocks, handlers, place, scratch)


def _keep_advancing(home: Home) -> None:
    """Carry the queue and the comparisons on as long as the page is served."""
    queue.keep_advancing(home)
    keeper.keep_advancing(home)


def policy_for(
    home: Home, host: str, public_urls: Sequence[str] = (), always_asks: bool = False
) -> GatePolicy:
    """Return who may open the page. Raises ValueError."""
    public = tuple(PublicUrl.parse(url) for url in public_urls)
    asks_everyone = always_asks or bool(public) or not is_loopback(host)
    is_own = None if asks_everyone else own_account_test()
    token = None
    if asks_everyone or is_own:
        token = load_or_create_token(home.path / "token")
    return GatePolicy(token, host, public_urls=public, is_own=is_own)


def _print_links(blocks: gr.Blocks, policy: GatePolicy, share: bool) -> str:
    """Print where the page is, and return its address on this machine."""
    here = str(blocks.local_url)
    for public in policy.public_urls:
        print(f"Tailor is at {login_url(public.url, policy.token)}", flush=True)
    if policy.public_urls:
        print(f"On this machine: {login_url(here, policy.token)}", flush=True)
    elif policy.asks_everyone:
        print(f"Tailor is at {login_url(here, policy.token)}", flush=True)
    else:
        print(f"Tailor is at {here}", flush=True)
    if policy.is_own:
        link = login_url(here, policy.token)
        print(f"Other accounts of this machine need the token: {link}", flush=True)
    if share:
        print(_share_sentence(blocks, policy), flush=True)
    return here


def find_folder(path: str) -> Path:
    """Return a folder that --data names, without links. Raises ValueError."""
    try:
        folder = Path(path).expanduser().resolve()
        if folder.is_dir():
            return folder
    except (OSError, RuntimeError):  # RuntimeError: ~ of an unknown user
        pass
    raise ValueError(f"data: there is no folder {path}; name one that you can read")


def _print_gift(policy: GatePolicy, home: Home, data_folders: Sequence[Path]) -> None:
    """Print what those can do who have the token, and whose the home is if it is another's."""
    if policy.token is not None:
        may = f"train on this machine, and read and change all runs and uploads in {home.path}"
        for folder in data_folders:
            may += f", and use the files in {folder}"
        print(f"Who has the token can {may}.", flush=True)
    if owner := home.other_owner:
        said = f"{home.path} belongs to the account {owner}; what is written there is root's."
        print(said, flush=True)


def _require_free(host: str, port: int) -> None:
    """Raise ValueError if nothing can listen there. Port 0 is any free one."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.getaddrinfo(host, None)
        socket.create_server((host, port), family=family).close()
    except OverflowError:
        raise ValueError(f"port: {port} is not a port; give 1 to 65535") from None
    except OSError as error:
        if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
            fix = "give one that it has, or 0.0.0.0 for all of them"
            raise ValueError(f"host: {host} is not an address of this machine; {fix}") from None
        why = f"{os.strerror(error.errno or 0)}; give another port, or none for the first free one"
        raise ValueError(f"port: cannot listen on {host}:{port}: {why}") from None


def launch(
    blocks: gr.Blocks, home: Home, policy: GatePolicy, port: int | None, share: bool = False
) -> None:
    """Start the server behind the gate, with what Gradio opens by default closed."""
    os.environ["FORWARDED_ALLOW_IPS"] = "none"  # only the gate reads the headers of proxies
    quiet_logs()
    blocks.queue(api_open=False, max_size=64, default_concurrency_limit=4)
    blocks.launch(
        server_name=policy.host,
        server_port=port,
        share=share,
        prevent_thread_lock=True,
        quiet=True,
        theme=theme(),
        css_paths=[STYLE],
        js=_page_script(),
        footer_links=[],
        app_kwargs={
            "middleware": [Middleware(Gate, policy=policy)],
            "openapi_url": None,
            "docs_url": None,
            "redoc_url": None,
            "routes": [
                Route("/bundle/{run_id}.zip", partial(_send_bundle, home)),
                Route("/export/{run_id}/{name}/{file}", partial(_send_export, home)),
            ],
        },
        max_file_size=policy.max_upload_bytes,
        state_session_capacity=200,
        enable_monitoring=False,
        run_history=False,
        mcp_server=False,
        ssr_mode=False,
        num_workers=0,
        pwa=False,
    )
    guard(blocks.server)
    forget_closed_pages(blocks)


def _page_script() -> str:
    """Return all scripts as the one function that Gradio takes."""
    calls = "\n".join(f"({path.read_text(encoding='utf-8')})();" for path in SCRIPTS)
    return f"() => {{ {calls} }}"


def _send_bundle(home: Home, request: Request) -> Response:
    """Return the bundle of a run as a zip."""
    try:
        run = runs.read(home, request.path_params["run_id"])
        target = Path(tempfile.gettempdir()) / f"{run.id}-{secrets.token_hex(4)}.zip"
        bundle.write_bundle(run, target)
    except (RunNotFound, SpecError, OSError) as error:
        return PlainTextResponse(f"There is no bundle: {error}\n", status_code=404)
    return FileResponse(target, filename=f"{run.id}.zip", background=BackgroundTask(target.unlink))


def _send_export(home: Home, request: Request) -> Response:
    """Return a file that an export of a run lists."""
    asked = request.path_params
    try:
        found = list_exports(runs.read(home, asked["run_id"]))
    except (RunNotFound, SpecError):
        found = ()
    for export in found:
        names = [each.name for each in export.manifest.files]
        path = export.folder / asked["file"]
        is_there = path.is_file() and not path.is_symlink()
        if export.name == asked["name"] and asked["file"] in names and is_there:
            return FileResponse(path, filename=path.name)
    return PlainTextResponse("There is no such export.\n", status_code=404)


def isolate(home: Home) -> Path:
    """Work in an empty folder, with temporary files in the home: Gradio serves files of both.

    Return the folder of the temporary files, which is this process's own.
    """
    empty = home.path / "empty"
    empty.mkdir(mode=0o700, exist_ok=True)
    scratch = make_scratch(home.path / "tmp")
    os.environ["GRADIO_TEMP_DIR"] = str(scratch / UPLOADS)
    tempfile.tempdir = str(scratch)
    os.chdir(empty)
    return scratch


def _share_sentence(blocks: gr.Blocks, policy: GatePolicy) -> str:
    if not blocks.share_url:
        return "No public link (is this machine online?). The page is served here only."
    policy.allow_share(blocks.share_url)
    link = login_url(blocks.share_url, policy.token)
    return f"Everyone with this link can use this machine: {link}"


def _wait(blocks: gr.Blocks, handlers: Handlers, home: Home, scratch: Path) -> int:
    """Serve until Ctrl-C, or until the home is gone. Return the exit code."""
    inode, code = home.path.stat().st_ino, 0
    try:
        interrupts.interrupt_at_ctrl_c()  # before, there was nothing to close
        while _is_same(home, inode):
            time.sleep(SECONDS_BETWEEN_LOOKS)
        print(f"The page is closed: {home.path} was removed.", file=sys.stderr)
        code = 1
    except KeyboardInterrupt:
        print("The page is closed. Runs continue.")
    finally:
        handlers.close()
        blocks.close(verbose=False)
        remove_scratch(scratch)
    return code


def _is_same(home: Home, inode: int) -> bool:
    """Return False if a home was removed, or replaced by another folder."""
    try:
        return home.path.stat().st_ino == inode
    except FileNotFoundError:
        return False
    except OSError:  # a network disk that is away for a moment
        return True
