"""Time a chat: until it is ready, until the first token of an answer, and its tokens per second.

    python benchmarks/chat_speed.py [RUN|MODEL] [--home DIR]        (default: the demo model)

Prints {"ready_seconds", "first_token_seconds", "tokens_per_second"}, the last two as medians of
several answers.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from statistics import median

sys.path.append(str(Path(__file__).resolve().parent.parent))

from core.after_training.chat import AnswerSettings, Chat, FinishedAnswer, find_side, plan_chat
from core.runs import Home

NUM_ANSWERS = 9
QUESTION = [{"role": "user", "content": "Who are you?"}]


def measure(home: Home, target: str) -> dict[str, float]:
    """Ask one model several times and return the times."""
    plan = plan_chat((find_side(home, target),))
    started = time.monotonic()
    chat = Chat(home, plan)
    ready = time.monotonic() - started
    firsts, rates = [], []
    try:
        for seed in range(NUM_ANSWERS):
            settings = AnswerSettings(max_tokens=64, seed=seed)
            for each in chat.ask([QUESTION], settings):
                if isinstance(each, FinishedAnswer):
                    firsts.append(each.seconds_to_first)
                    rates.append(each.num_tokens / each.seconds)
    finally:
        chat.end()
    return {
        "ready_seconds": round(ready, 2),
        "first_token_seconds": round(median(firsts), 4),
        "tokens_per_second": round(median(rates), 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("target", nargs="?", default="demo")
    parser.add_argument("--home")
    arguments = parser.parse_args()
    print(json.dumps(measure(Home.find(arguments.home), arguments.target)))


if __name__ == "__main__":
    main()
