"""Stop strings never leak, and text comes out whole whatever the token boundaries are."""

from hypothesis import given
from hypothesis import strategies as st

from mainspring.models.tokenizer import Tokenizer
from mainspring.serve.engine.request import Sequence, StopFilter
from mainspring.serve.engine.sample import Sampled
from mainspring.serve.servable import Piece
from mainspring.spec import SamplingParams

LETTERS = st.text("ab", max_size=30)


def feed(ids: list[int], tokenizer: Tokenizer, sampling: SamplingParams) -> list[Piece]:
    sequence = Sequence(
        key=0,
        tokens=[5],
        sampling=sampling,
        seed=0,
        stream=tokenizer.stream(),
        stops=StopFilter(sampling.stop),
        arrived_s=0.0,
    )
    pieces: list[Piece] = []
    for token in ids:
        piece = sequence.accept(Sampled(token), tokenizer=tokenizer)
        if piece is not None:
            pieces.append(piece)
        if sequence.state == "DONE":
            break
    return pieces


@given(pushes=st.lists(LETTERS, max_size=10), stops=st.lists(st.text("ab", min_size=1, max_size=5), max_size=3))
def test_a_stop_string_ends_the_text_and_no_part_of_it_is_given_out(pushes: list[str], stops: list[str]) -> None:
    stops_at = StopFilter(stops)
    given_out, stopped, seen = "", False, ""
    for text in pushes:
        seen += text
        part, stopped = stops_at.push(text)
        given_out += part
        assert seen.startswith(given_out)
        assert stopped == any(stop in seen for stop in stops)
        if stopped:
            break
        # Whatever is out is final: no continuation can turn its end into the start of a stop string.
        assert not any(
            given_out.endswith(stop[:size]) for stop in stops for size in range(1, len(stop)) if seen == given_out
        )
    # The stop string that is complete first ends the text, though a longer one may have begun before it.
    ends = [at for stop in stops if (at := seen.find(stop)) >= 0]
    assert given_out + stops_at.finish() == (seen[: min(ends)] if ends else seen)


def test_characters_of_several_tokens_arrive_whole(tokenizer: Tokenizer) -> None:
    text = "naïve 😀 日本語"
    pieces = feed(tokenizer.encode(text), tokenizer, SamplingParams(max_tokens=100))
    assert "".join(piece.text for piece in pieces) == text
    assert all("\ufffd" not in piece.text for piece in pieces)


def test_every_token_is_reported_once_even_when_its_text_is_held_back(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("a list keeps items in order")
    pieces = feed(ids, tokenizer, SamplingParams(max_tokens=len(ids), stop=("items in disorder",)))
    assert [token for piece in pieces for token in piece.token_ids] == ids
    assert "".join(piece.text for piece in pieces) == "a list keeps items in order"
    assert [piece.finish for piece in pieces][-1] == "length"


def test_a_stop_string_across_tokens_stops(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("a list keeps items in order")
    pieces = feed(ids, tokenizer, SamplingParams(max_tokens=100, stop=("eps it",)))
    assert "".join(piece.text for piece in pieces) == "a list ke"
    assert pieces[-1].finish == "stop"


def test_the_end_token_ends_unless_it_is_ignored(tokenizer: Tokenizer) -> None:
    assert tokenizer.eos_id is not None
    ids = [*tokenizer.encode("a list"), tokenizer.eos_id, *tokenizer.encode(" keeps")]
    stopped = feed(ids, tokenizer, SamplingParams(max_tokens=100))
    assert ("".join(piece.text for piece in stopped), stopped[-1].finish) == ("a list", "stop")
    going = feed(ids, tokenizer, SamplingParams(max_tokens=len(ids), ignore_eos=True))
    assert "".join(piece.text for piece in going) == "a list keeps"


def test_an_unfinished_character_is_flushed_at_the_end(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("😀")[:1]
    pieces = feed(ids, tokenizer, SamplingParams(max_tokens=1))
    assert (pieces[-1].text, pieces[-1].finish) == ("\ufffd", "length")
