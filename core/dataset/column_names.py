"""Names under which people write columns, in several languages. Holds tables; reads no file."""

from collections.abc import Iterable, Mapping
from types import MappingProxyType

from core.training.contract.messages import ROLE_KEYS
from core.training.contract.row_formats import KEY_WORDS, plain_name

QUESTIONS = (
    "question query prompt instruction inputs input problem request user human task "
    "questions prompts instructions frage pregunta pergunta domanda vraag pytanie soru câuhỏi "
    "質問 問題 設問 問 指示 入力 问题 问 提问 指令 输入 질문 вопрос питання инструкция ερώτηση "
    "السؤال سؤال שאלה प्रश्न सवाल"
)
ANSWERS = (
    "answer response completion outputs output targets reply solution assistant target result gpt "
    "answers responses completions antwort respuesta réponse resposta risposta antwoord odpowiedź "
    "cevap yanıt trảlời 回答 答案 解答 答え 答 出力 输出 답변 대답 응답 ответ відповідь απάντηση "
    "الجواب جواب الإجابة إجابة תשובה उत्तर जवाब ideal"
)
BETTER = "accepted preferred winner better best good positive"
WORSE = "dispreferred nonpreferred loser worse worst bad negative"
PRODUCTS = "sql code summary highlights translation"
"""Names of answers that are texts of their own in other files."""


def _answers(words: str) -> str:
    """Return words alone and before a word for an answer: `better`, `betteranswer`."""
    ends = ("", "answer", "response", "completion", "output")
    return " ".join(word + end for word in words.split() for end in ends)


ALIASES: Mapping[str, str] = MappingProxyType(
    {
        "messages": "conversation chat dialogue dialog",
        "prompt": QUESTIONS,
        "completion": f"{ANSWERS} {PRODUCTS}",
        "question": QUESTIONS,
        "answer": f"{ANSWERS} {PRODUCTS}",
        "chosen": f"{_answers(BETTER)} chosenmessages",
        "rejected": f"{_answers(WORSE)} rejectedmessages other",
        "label": "desirable preference thumbsup isgood",
        "text": "content body document passage article story code",
        "system": (
            "systemprompt systemmessage systemtext sysprompt sistema système systemnachricht "
            "システム 系统 系統 系统提示 시스템 система"
        ),
        "context": (
            "input passage passages background evidence schema paragraph kontext contexte "
            "contexto contesto 文脈 上下文 背景 参考 문맥 맥락 контекст السياق سياق संदर्भ"
        ),
        "history": (
            "chathistory conversationhistory dialoguehistory dialoghistory 履歴 历史 歷史 история"
        ),
        "tools": "functions availabletools",
    }
)
"""Our column -> other names for it in lower case, the likelier first."""
OPTIONAL_COLUMNS = ("system", "context", "history", "tools")
# fmt: off
HEADINGS = KEY_WORDS | frozenset(("title", "topic", "author", "subject", "tag", "tags", "split"))
"""Names of columns that say what a text is about."""
PREFERENCE_WORDS = frozenset((
    "chosen", "rejected", "preferred", "dispreferred", "winner", "loser", "better", "worse",
    "accepted", "positive", "negative", "good", "bad",
))
"""Words of names that are for a better or a worse answer."""
FILLERS = frozenset((
    "text", "texts", "content", "string", "str", "column", "field", "raw", "clean", "cleaned", "en",
))
# fmt: on
"""Words that add nothing to a name: `answer_text` is an answer."""


def names_of(column: str) -> list[str]:
    """Return the names of our column, the likelier first."""
    return [column, *ALIASES.get(column, "").split()]


def by_plain_name(names: Iterable[str]) -> dict[str, str]:
    """Return column names by their plain names."""
    found: dict[str, str] = {}
    for name in names:
        plain = plain_name(name)
        # Of two names that differ in punctuation only, the second keeps it.
        found[name if not plain or plain in found else plain] = name
    return found


NEVER_ASKED = frozenset(
    (
        *ROLE_KEYS,
        *(
            plain_name(name)
            for column in ("system", "history", "tools")
            for name in names_of(column)
        ),
    )
)
"""Plain names of columns that are no question and no answer."""
SPOKEN = frozenset((*QUESTIONS.split(), *ANSWERS.split(), *ROLE_KEYS))
"""Words in names of texts that are one turn of several."""
