"""Whether the Hugging Face Hub answers, asked once and briefly, before somebody waits for what is read from it."""

import threading
from contextlib import suppress

SECONDS_TO_ANSWER = 3.0


def stay_offline_without_answer() -> None:
    """Where the Hub does not answer, this process reads what was downloaded before, and nothing else, from here on.

    The Hub's client would ask again and again for most of a minute before it says the same. It is asked in a thread,
    because a name server that is silent keeps no time limit.
    """
    from huggingface_hub import constants, get_session

    answers: list[object] = []

    def ask() -> None:
        with suppress(
            Exception
        ):  # whichever HTTP library the client is built on: no answer is no answer
            answers.append(get_session().head(constants.ENDPOINT, timeout=SECONDS_TO_ANSWER))

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(SECONDS_TO_ANSWER)
    if not answers:
        constants.HF_HUB_OFFLINE = True
