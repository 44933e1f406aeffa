"""Access control in front of every route: Host, Origin, sizes, accounts and the token.

Knows two paths of Gradio and nothing else of it. Never reads a body, never sees a job.
"""

from ui.gate import accounts, sessions, uploads
from ui.gate.accounts import own_account_test
from ui.gate.gate import LOGIN_PAGE, SECURITY_HEADERS, STARTUP_PATH, Gate
from ui.gate.policy import UPLOAD_PATH, GatePolicy, PublicUrl, is_loopback, login_url
from ui.gate.sessions import load_or_create_token, new_token

__all__ = [
    "LOGIN_PAGE",
    "SECURITY_HEADERS",
    "STARTUP_PATH",
    "UPLOAD_PATH",
    "Gate",
    "GatePolicy",
    "PublicUrl",
    "accounts",
    "is_loopback",
    "load_or_create_token",
    "login_url",
    "new_token",
    "own_account_test",
    "sessions",
    "uploads",
]
