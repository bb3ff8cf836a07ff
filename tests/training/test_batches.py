from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import TrainingConfig
from pipeline.data.dataset import read_conversations
from pipeline.errors import DataError, TrainingError
from pipeline.training import batches
from pipeline.training.batches import Sample
from tests.training.conftest import conversation, write_dataset


def samples(count, tokens=20, weight=1.0):
    return [Sample(f"c{number}", tuple(range(tokens)), (3, 4, 5), (1.0,) * 3, weight) for number in range(count)]


def order(data, seed, epoch):
    return [family.samples[0].id for family in batches.epoch_order(batches.families(data), seed, epoch)]


def test_targets_are_the_dms_words_and_their_end_of_turn(tokenizer, tmp_path):
    data = write_dataset(tmp_path / "d.jsonl", [conversation(0, turns=2)])
    (sample,) = batches.encode(tokenizer, read_conversations(data.conversations), TrainingConfig(call_weight=7))
    text = tokenizer.decode([sample.ids[target] for target in sample.targets])
    assert text == "You move without a sound.\n\n[roll: stealth]<|im_end|>She shrugs. Lights, she says.<|im_end|>"
    weighty = [sample.ids[target] for target, share in zip(sample.targets, sample.shares, strict=True) if share == 7]
    assert tokenizer.decode(weighty) == "\n\n[roll: stealth]<|im_end|><|im_end|>"


def test_of_borrowed_prose_only_the_choice_of_a_call_is_trained(tokenizer, tmp_path):
    data = write_dataset(tmp_path / "d.jsonl", [conversation(0, turns=2) | {"call_only": True}])
    (sample,) = batches.encode(tokenizer, read_conversations(data.conversations), TrainingConfig())
    text = tokenizer.decode([sample.ids[target] for target in sample.targets])
    assert text == "\n\n[roll: stealth]<|im_end|><|im_end|>"


def test_a_conversation_without_a_dm_turn_is_refused(tokenizer, tmp_path):
    item = conversation(0)
    item["messages"] = item["messages"][:2]
    data = write_dataset(tmp_path / "d.jsonl", [item])
    with pytest.raises(DataError, match="cannot be trained"):
        batches.encode(tokenizer, read_conversations(data.conversations), TrainingConfig())


def test_predictors_look_at_the_token_before_their_label():
    pair = [Sample("a", (10, 11, 12, 13), (2,), (1.0,)), Sample("b", (20, 21, 22), (1, 2), (1.0, 3.0))]
    batch = batches.micro_batch(batches.families(pair))
    assert batch.input_ids.tolist() == [[10, 11, 12, 13, 20, 21, 22, *[10] * 9]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 0, 1, 2, *range(9)]]
    assert batch.layouts == ((4,), (3,), (9,))
    assert batch.predictors.tolist() == [1, 4, 5, *[0] * 13]
    assert batch.labels.tolist() == [12, 21, 22, *[10] * 13]
    assert batch.shares.tolist() == [1.0, 1.0, 3.0, *[0.0] * 13]


def test_what_a_family_has_in_common_stands_and_is_trained_once():
    members = [
        Sample("a", (1, 2, 3, 10, 11), (2, 3, 4), (1.0, 2.0, 1.0), group="g"),
        Sample("alone", (7, 8), (1,), (1.0,)),
        Sample("b", (1, 2, 3, 20), (2, 3), (1.0, 5.0), group="g"),
    ]
    family, alone = batches.families(members)
    assert family.layout == (3, 2, 1) and family.tokens == 6 and alone.layout == (2,)
    batch = batches.micro_batch([alone, family])
    assert batch.input_ids.tolist() == [[7, 8, 1, 2, 3, 10, 11, 20, *[7] * 8]]
    assert batch.position_ids.tolist() == [[0, 1, 0, 1, 2, 3, 4, 3, *range(8)]]
    assert batch.layouts == ((2,), (3, 2, 1), (8,))
    assert batch.predictors.tolist() == [0, 3, 4, 5, 4, *[0] * 11]
    assert batch.labels.tolist() == [8, 3, 10, 11, 20, *[7] * 11]
    assert batch.shares.tolist() == [1.0, 1.0, 2.0, 1.0, 5.0, *[0.0] * 11]


def test_the_order_depends_on_seed_and_epoch_alone():
    data = samples(30)
    assert order(data, 1, 0) == order(list(data), 1, 0)
    assert order(data, 1, 0) != order(data, 1, 1)
    assert order(data, 1, 0) != order(data, 2, 0)


def test_weights_are_sampling_weights():
    data = [*samples(1, weight=2.5), Sample("rare", (1, 2, 3, 4), (2,), (1.0,), 0.25)]
    drawn = Counter(name for epoch in range(400) for name in order(data, 3, epoch))
    assert 2.3 < drawn["c0"] / 400 < 2.7 and 0.18 < drawn["rare"] / 400 < 0.32


@given(st.lists(st.integers(1, 300), min_size=1, max_size=40), st.integers(32, 400))
def test_packing_keeps_every_conversation_whole_and_within_the_limit(lengths, limit):
    data = [Sample(str(number), tuple(range(length)), (), ()) for number, length in enumerate(lengths)]
    rows = batches.pack(batches.families(data), limit)
    packed = [family.samples[0].id for row in rows for family in row]
    assert sorted(packed) == sorted(sample.id for sample in data)
    assert all(sum(family.tokens for family in row) <= limit or len(row) == 1 for row in rows)


def test_the_token_budget_and_fractions_of_epochs_end_the_run():
    data = samples(10, tokens=100)
    counts = {
        epochs: sum(len(step.families) for step in batches.steps(data, TrainingConfig(epochs=epochs), 0))
        for epochs in (0.5, 1.0, 2.3)
    }
    assert counts == {0.5: 5, 1.0: 10, 2.3: 23}
    budget = batches.steps(data, TrainingConfig(epochs=50, max_tokens=1234, batch_tokens=400), 0)
    assert sum(step.tokens for step in budget) == 1300 and all(step.tokens <= 400 for step in budget)
    assert [step.number for step in budget] == list(range(1, len(budget) + 1))


def test_batch_size_counts_conversations():
    sizes = [len(step.families) for step in batches.steps(samples(10), TrainingConfig(batch_size=4), 0)]
    assert sizes == [4, 4, 2]


def test_nothing_to_train_on_is_an_explained_failure():
    with pytest.raises(TrainingError, match="nothing to train on"):
        batches.steps([], TrainingConfig(), 0)
