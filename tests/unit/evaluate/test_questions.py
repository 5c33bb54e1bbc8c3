"""Questions are deterministic, tied to one document, and do not give its name away."""

import hashlib

from mainspring.data.documents import make_document
from mainspring.evaluate.questions import Question, make_questions
from mainspring.spec import Document


def document(title: str, text: str) -> Document:
    return Document(
        id=hashlib.sha256((title + text).encode()).hexdigest(), source=title, title=title, text=text, format="python"
    )


JOIN = document(
    "os.path.join",
    "# os.path.join\n\n    join(a, *p)\n\nJoin two or more pathname components, inserting separators as needed.\n\n"
    "If any component is an absolute path, all previous path components will be discarded.\n",
)
COUNTER = document(
    "collections.Counter",
    "# class collections.Counter\n\nDict subclass for counting hashable items.\n\n"
    "A Counter is a container that keeps elements as keys and their counts as values.\n\n"
    "## Counting with the subtraction operator\n\n```\nIf code is here, ignored it is.\n```\n",
)
MKDTEMP = document("tempfile.mkdtemp", "Returns the pathname of a fresh private directory made by mkdtemp() itself.")


def test_each_form_reads_as_a_question_and_hides_the_name() -> None:
    made = {(q.form, q.text) for q in make_questions([JOIN, COUNTER, MKDTEMP], 100)}
    assert made == {
        ("purpose", "How do I join two or more pathname components, inserting separators as needed?"),
        ("case", "What happens if any component is an absolute path?"),
        ("purpose", "Where does it say: Dict subclass for counting hashable items?"),
        ("definition", "What is a container that keeps elements as keys and their counts as values?"),
        ("heading", "Counting with the subtraction operator"),
        ("purpose", "What returns the pathname of a fresh private directory made by it itself?"),
    }
    assert not any("mkdtemp" in text or "os.path" in text for _, text in made)
    assert not any("ignored it is" in text for _, text in made), "code is not prose"


def test_the_same_documents_give_the_same_questions_in_any_order() -> None:
    documents = [JOIN, COUNTER, MKDTEMP]
    assert make_questions(documents, 4, seed=1) == make_questions(documents[::-1], 4, seed=1)
    assert make_questions(documents, 4, seed=1) != make_questions(documents, 4, seed=2)


def test_every_document_is_asked_once_before_any_is_asked_twice() -> None:
    first = make_questions([JOIN, COUNTER, MKDTEMP], 3)
    assert len({question.document for question in first}) == 3


def test_a_question_that_two_documents_answer_is_dropped() -> None:
    text = "Return the number of characters in the whole archive."
    assert make_questions([document("a.one", text), document("b.two", text)], 10) == ()


def test_documents_without_prose_give_no_question() -> None:
    assert (
        make_questions([document("x", ""), document("y", "1 2 3\n\n```\ncode\n```"), document("z", "No end")], 9) == ()
    )


def test_a_chinese_document_can_be_asked_about() -> None:
    chinese = document("路径", "路径连接函数会把两个目录名称合并成一个完整的文件路径。第二句说明。")
    (question,) = make_questions([chinese], 1)
    assert isinstance(question, Question)
    assert question.document == chinese.id
    assert "目录名称" in question.text


def test_a_document_in_any_script_gives_a_question() -> None:
    pages = {
        "ru": "Всеобщая декларация\n\nПринята резолюцией\n\n" + "слово " * 60 + ".\n\n"
        "Все люди рождаются свободными и равными в своем достоинстве и правах.",
        "ar": "# إعلان\n\n" + "كلمة " * 60 + ".\n\nيولد جميع الناس أحراراً متساوين في الكرامة والحقوق.",
        "zh": "# 宣言\n\n" + "词" * 200 + "。\n\n人人生而自由,在尊严和权利上一律平等。他们赋有理性和良心。",
    }
    documents = [make_document(source, text, title=source, kind="text") for source, text in pages.items()]
    asked = {question.document: question.text for question in make_questions(documents, 9)}
    assert asked.keys() == {document.id for document in documents}
    assert asked[documents[0].id] == "Все люди рождаются свободными и равными в своем достоинстве и правах?"
    assert asked[documents[2].id].endswith("\uff1f")
