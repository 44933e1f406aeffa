"""Child processes that need heavy libraries and are no part of a run.

Started as `python -m core.workers.NAME`; nothing else imports them.
"""
