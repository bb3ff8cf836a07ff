"""The same file on the same turns gives the same replies, byte for byte, however the turns are shared out."""

from dataclasses import asdict

import pytest

from pipeline.export.convert import convert
from pipeline.export.quantize import quantize
from pipeline.validation.play import play
from pipeline.validation.servers import number_of_servers, serve_apart, share_out
from tests import tiny_gguf
from tests.validation.samples import SYSTEM, conversation


@pytest.fixture(scope="module")
def babble(tmp_path_factory):
    return tiny_gguf.write(tmp_path_factory.mktemp("babble") / "babble.gguf")


def games(count):
    """Conversations that begin alike and go on differently, in several lengths."""
    made = [conversation(number, category=("stealth", "combat")[number % 2]) for number in range(count)]
    for number, game in enumerate(made):
        system = {"role": "system", "content": f"{SYSTEM}\nNotes: {'rain, ' * number}wind"}
        object.__setattr__(game, "messages", (system, *game.messages[1 : 5 + 4 * (number % 2)]))
    return made


def played(llama, model, conversations, threads, tokens=24):
    with serve_apart(llama, model, threads=threads, most=8, context=1024) as servers:
        return [asdict(reply) for reply in play(servers, conversations, max_tokens=tokens)]


def test_two_evaluations_give_the_same_bytes(babble, llama):
    first = played(llama, babble, games(4), 2)
    assert played(llama, babble, games(4), 2) == first
    assert len({reply["text"] for reply in first}) > 4  # and it did say different things


def test_neither_the_order_nor_the_number_of_servers_changes_a_reply(babble, llama):
    forwards = played(llama, babble, games(4), 2)
    backwards = played(llama, babble, games(4)[::-1], 1)
    known = {(reply["conversation"], reply["index"]): reply for reply in backwards}
    assert all(known[reply["conversation"], reply["index"]] == reply for reply in forwards)


@pytest.mark.dear
def test_a_real_quantised_model_repeats_itself_too(smollm2, llama, tmp_path):
    model = tmp_path / "model.gguf"
    convert(smollm2.path, tmp_path / "f16.gguf", llama, {})
    quantize(tmp_path / "f16.gguf", model, "Q4_K_M", llama, 2, 2e9)
    first = played(llama, model, games(4), 2, 64)
    again = played(llama, model, games(4)[::-1], 1, 64)
    known = {(reply["conversation"], reply["index"]): reply for reply in again}
    assert all(known[reply["conversation"], reply["index"]] == reply for reply in first)


def test_the_number_of_servers_follows_from_threads_and_file_size_alone():
    assert (number_of_servers(2, 16, 105_000_000), number_of_servers(64, 16, 105_000_000)) == (2, 16)
    assert number_of_servers(64, 16, 800_000_000) == 2
    assert number_of_servers(64, 16, 3_000_000_000) == 1


def test_results_come_in_the_order_of_the_items_and_a_failure_is_not_lost():
    assert share_out([None, None], [3, 1, 2], lambda _, item: item * 2, int) == [6, 2, 4]  # type: ignore[list-item]
    with pytest.raises(ZeroDivisionError):
        share_out([None], [1, 0], lambda _, item: 1 // item, int)  # type: ignore[list-item]
