"""Answers of a GGUF file in llama.cpp to the tests of a suite. Judges none of them; imports no
torch.

Prompts are written by the chat template and the tokenizer in the file, as its users have them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.training.contract.checks.suite import Suite, SuiteTest
from core.training.contract.failures import TrainingError
from core.workers.llama_server import SECONDS_TO_ANSWER, LlamaServer

TEMPLATE_TOKENS = 512
"""Room for what a chat template adds to a prompt."""
MIN_CONTEXT = 1024
FORCED = 1e4
"""Added to the logit of a token, so that it comes next. Probabilities are those before it."""
PLAIN_LETTER = "a"
WHOLE_VOCABULARY = 10**7
MAX_REASON_CHARACTERS = 300


@dataclass
class GgufExaminee:
    """Exported file that answers suites, one test after the other."""

    server: LlamaServer
    name: str
    """Name of the file, for messages."""
    has_template: bool
    on_progress: Callable[[int, int], None]
    """Called with (tests answered, tests of the suite)."""

    @classmethod
    def load(
        cls,
        gguf: Path,
        tools: str,
        suites: Sequence[Suite],
        *,
        has_template: bool,
        on_progress: Callable[[int, int], None],
    ) -> "GgufExaminee":
        """Load a file with room for the longest test. Raises TrainingError."""
        try:
            server = LlamaServer(tools, str(gguf), context_of(suites))
        except ImportError as error:
            reason = str(error)[:MAX_REASON_CHARACTERS]
            raise TrainingError(f"llama.cpp does not start ({reason}): install it again.") from None
        except RuntimeError:
            raise TrainingError(f"llama.cpp cannot read {gguf.name}: export it again.") from None
        return cls(server, gguf.name, has_template, on_progress)

    def answers(self, suite: Suite) -> tuple[str, ...]:
        """Return the greedy answer to each test; of one with choices, the most likely choice.

        Raises TrainingError for a test that the file cannot read.
        """
        found = []
        for test in suite.tests:
            place = f"suite {suite.name}, line {test.line}"
            try:
                prompt = self._prompt(test)
                answer = self._choose(prompt, test) if test.choice else self._write(prompt, test)
            except ValueError as error:
                reason = str(error)[:MAX_REASON_CHARACTERS].rstrip(".").replace(": ", ", ")
                raise TrainingError(f"{place}, {self.name} ({reason}): change this test.") from None
            found.append(answer.strip())
            self.on_progress(len(found), len(suite.tests))
        return tuple(found)

    def _prompt(self, test: SuiteTest) -> list[int]:
        if not self.has_template:  # a base model continues a plain text
            text = "\n\n".join(str(each.get("content") or "") for each in test.messages)
            return self.server.tokens_of(text, adds_special_tokens=True)
        text = self.server.rendered(test.messages, tools=test.tools)
        return self.server.tokens_of(text, adds_special_tokens=False)

    def _write(self, prompt: list[int], test: SuiteTest) -> str:
        found = self._complete(prompt, n_predict=test.max_new_tokens, cache_prompt=False)
        return str(found["content"])

    def _choose(self, prompt: list[int], test: SuiteTest) -> str:
        """Return the most likely choice, by the sum of the log-probabilities of its tokens."""
        likelihoods = []
        for choice in test.choice:
            text = choice.strip() if self.has_template else f" {choice.strip()}"
            after = self.server.tokens_of(text, adds_special_tokens=False)
            places = range(len(after))
            likelihoods.append(sum(self._logprob(prompt + after[:at], after[at]) for at in places))
        return test.choice[likelihoods.index(max(likelihoods))]

    def _logprob(self, prompt: list[int], token: int) -> float:
        """Return the log-probability of a token behind a prompt."""
        found = self._complete(prompt, n_predict=1, n_probs=1, logit_bias=[[token, FORCED]])
        reported = found.get("completion_probabilities")
        if reported and reported[0]["id"] == token:
            return float(reported[0]["logprob"])
        # The server tells nothing of an answer that ends inside a character. So the first token is
        # another one, and this one is found among all.
        letter = self.server.tokens_of(PLAIN_LETTER, adds_special_tokens=False)[0]
        found = self._complete(
            prompt, n_predict=1, n_probs=WHOLE_VOCABULARY, logit_bias=[[letter, FORCED]]
        )
        known = found["completion_probabilities"][0]["top_logprobs"]
        return next(float(each["logprob"]) for each in known if each["id"] == token)

    def _complete(self, prompt: list[int], **settings: object) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self.server.ask(
            "/completion", SECONDS_TO_ANSWER, prompt=prompt, temperature=0, **settings
        )
        return found


def context_of(suites: Sequence[Suite]) -> int:
    """Return the tokens that the longest test needs, with its answer, at most.

    No token is shorter than one byte.
    """
    longest = MIN_CONTEXT
    for test in (test for suite in suites for test in suite.tests):
        written = str(test.messages) + str(test.tools)
        longest = max(longest, len(written.encode()) + TEMPLATE_TOKENS + test.max_new_tokens)
    return longest
