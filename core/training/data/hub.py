"""Asks once and briefly whether the Hugging Face Hub answers. Downloads nothing."""

import threading
from contextlib import suppress

SECONDS_TO_ANSWER = 3.0


def stay_offline_without_answer() -> None:
    """Make this process read downloaded files only, if the Hub does not answer.

    The Hub's client would retry for most of a minute before it gives up. It is asked in a thread,
    because a name server that does not answer keeps no time limit.
    """
    from huggingface_hub import constants, get_session

    answers: list[object] = []

    def ask() -> None:
        # The client may use any HTTP library: each error means that there is no answer.
        with suppress(Exception):
            answers.append(get_session().head(constants.ENDPOINT, timeout=SECONDS_TO_ANSWER))

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(SECONDS_TO_ANSWER)
    if not answers:
        constants.HF_HUB_OFFLINE = True
