"""The assistant behind a real OpenAI-compatible application, and the whole publish from a corpus."""

import asyncio
import json
from pathlib import Path

import pytest
import torch
from fastapi.testclient import TestClient

from mainspring.apps.rag.assistant import Rag, publish_app
from mainspring.apps.rag.publish import judge, measure, publish
from mainspring.apps.rag.servable import RagServable, open_servable
from mainspring.evaluate.report import read_report
from mainspring.models.tokenizer import train_bpe
from mainspring.models.transformer import Decoder
from mainspring.models.weights import save_pretrained
from mainspring.serve.http import create_app
from mainspring.serve.models import Models
from mainspring.serve.servable import Piece, Prompt
from mainspring.spec import DecoderConfig, GateDecision, SamplingParams, SpecError
from mainspring.store import Store

PASSED = GateDecision(verdict="pass", reasons=("x: 1, asked at most 1: met",))
QUESTION = "Which function joins two paths?"


@pytest.fixture
def assistant(library: Store) -> RagServable:
    gate = GateDecision(verdict="fail", reasons=("no model was given",))
    publish_app(library, name="book", index_ref="index:handbook", gate=gate)
    return open_servable(library, "app:book")


def collect(servable: RagServable, prompt: Prompt, sampling: SamplingParams) -> list[Piece]:
    async def run() -> list[Piece]:
        return [piece async for piece in servable.stream(prompt, sampling)]

    return asyncio.run(run())


def test_the_pieces_are_the_answer_and_the_last_carries_its_evidence(assistant: RagServable) -> None:
    pieces = collect(assistant, Prompt(messages=(("system", "be kind"), ("user", QUESTION))), SamplingParams())
    metadata = pieces[-1].metadata
    assert metadata is not None
    recorded = assistant.rag.trace(str(metadata["trace"]))
    assert "".join(piece.text for piece in pieces) == recorded.answer
    assert len(pieces) > 5
    assert [piece.finish for piece in pieces] == [None] * (len(pieces) - 1) + ["stop"]
    assert metadata["mode"] == "extracted"
    assert json.loads(json.dumps(metadata["citations"]))[0]["source"] == "os.path.join"


def test_a_stop_string_ends_the_text(assistant: RagServable) -> None:
    pieces = collect(assistant, Prompt(text=QUESTION), SamplingParams(stop=("two or",)))
    assert "".join(piece.text for piece in pieces).endswith("Join ")


@pytest.mark.parametrize("prompt", [Prompt(token_ids=(1, 2)), Prompt(messages=(("system", "x"),)), Prompt(text=" ")])
def test_what_is_no_question_is_refused_before_the_first_piece(assistant: RagServable, prompt: Prompt) -> None:
    with pytest.raises(SpecError):
        collect(assistant, prompt, SamplingParams())


def test_the_assistant_is_a_model_name_of_the_openai_server(assistant: RagServable) -> None:
    client = TestClient(create_app(Models({"book": lambda: assistant})))
    body = {"model": "book", "messages": [{"role": "user", "content": QUESTION}]}
    reply = client.post("/v1/chat/completions", json=body)
    assert reply.status_code == 200
    choice = reply.json()["choices"][0]
    assert choice["message"]["content"].startswith("`os.path.join(a, *p)`")
    assert '"trace"' in reply.text
    streamed = client.post("/v1/chat/completions", json=body | {"stream": True}).text
    assert '"citations"' in streamed
    assert streamed.rstrip().endswith("data: [DONE]")
    vectors = client.post("/v1/embeddings", json={"model": "book", "input": ["join two paths"]}).json()["data"]
    assert len(vectors[0]["embedding"]) == assistant.rag.index.manifest.dim
    huge = client.post("/v1/completions", json={"model": "book", "prompt": "x" * 1_000_000})
    assert huge.status_code == 400
    assert "at most 8000" in huge.text


def test_a_published_model_that_passed_its_gate_speaks_through_its_engine(library: Store, tmp_path: Path) -> None:
    tokenizer = train_bpe(["join two paths"], vocab=300)
    shape = {"hidden": 32, "layers": 1, "heads": 2, "kv_heads": 1, "ffn": 32, "context": 1024}
    config = DecoderConfig(vocab=tokenizer.vocab, bos_id=tokenizer.bos_id, eos_id=tokenizer.eos_id, **shape)
    torch.manual_seed(0)
    save_pretrained(Decoder(config), tmp_path / "m", tokenizer=tokenizer)
    model = library.publish("model", "tiny", tmp_path / "m")
    publish_app(library, name="tiny", index_ref="index:handbook", model_ref=model.ref, gate=PASSED)
    rag = Rag(library, "app:tiny")
    answer = rag.ask(QUESTION)
    rag.close()
    trace = rag.trace(answer.trace)
    assert trace.model == model.ref
    assert trace.prompt.endswith("Answer:")
    assert answer.mode == "extracted", "an untrained model's babble is not grounded"
    assert "of what the model wrote" in answer.note


def test_publishing_builds_the_index_measures_it_and_says_why_the_gate_failed(store: Store, publish_pages) -> None:
    pages = {
        f"tool{n}": f"# tool{n}\n\n    tool{n}(x)\n\nReturn the {word} of a machine with several engines."
        for n, word in enumerate(("weight", "colour", "height", "temperature", "pressure", "speed") * 8)
    } | {"alone": "# alone\n\nReturn the smell of freshly mown gardens after rain."}
    corpus = publish_pages(store, pages)
    app = publish(store, "tools", corpus=corpus.ref)
    assert json.loads(app.meta_json)["gate"] == "fail"
    assert "no model was given" in Rag(store, app.ref).ask("What returns the smell of mown gardens?").note
    assert judge(store, "", data=corpus.ref).reasons == ("no model was given",)


def test_retrieval_is_measured_on_held_out_documents(library: Store) -> None:
    artifact = measure(library, "index:handbook")
    assert artifact is not None
    report = read_report(library, artifact)
    assert report.score("recall@5") is not None
    assert report.score("text:mrr") is not None
    assert report.subject.startswith("index:handbook@")
