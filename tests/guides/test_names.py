"""The names, arguments and defaults that a user of the public guides types."""

import inspect
from typing import Any

import pytest

from bkray.guides import (
    ACTLanguageModel,
    ACTTrainer,
    AdaptiveResNetBKBlock,
    AdaptiveSequenceLengthWrapper,
    BirmanSchwingerCore,
    EarlyExitLanguageModel,
    LanguageModel,
    LearnedSequenceLengthTrainer,
    LongContextTrainer,
    MoEResNetBKLayer,
    ScatteringRouter,
    SemiseparableMatrix,
    SequenceLengthPredictor,
    StreamingEvaluator,
)

EMPTY = inspect.Parameter.empty
EXPERTS = {"num_experts": 4, "top_k": 1, "dropout_p": 0.1}
SIZES = {"vocab_size": EMPTY, "d_model": 64, "n_layers": 4, "n_seq": 128}
BINS = {"max_seq_len": 128, "num_length_bins": 8}
SIGNATURES: list[tuple[Any, dict[str, Any]]] = [
    (LanguageModel, {**SIZES, **EXPERTS}),
    (MoEResNetBKLayer, {"d_model": EMPTY, "n_seq": EMPTY, **EXPERTS}),
    (AdaptiveResNetBKBlock, {"d_model": EMPTY, "n_seq": EMPTY, **EXPERTS, "threshold": 0.99}),
    (AdaptiveResNetBKBlock.reset_ponder_cost, {"self": EMPTY}),
    (
        AdaptiveResNetBKBlock.forward,
        {"self": EMPTY, "x": EMPTY, "halting_prob_cumsum": None, "still_running": None},
    ),
    (ACTLanguageModel, {**SIZES, **EXPERTS, "act_threshold": 0.99, "act_lambda": 0.01}),
    (ACTLanguageModel.forward, {"self": EMPTY, "x": EMPTY, "return_ponder_cost": True}),
    (
        ACTLanguageModel.compute_loss,
        {"self": EMPTY, "logits": EMPTY, "targets": EMPTY, "ponder_cost": EMPTY},
    ),
    (ACTLanguageModel.get_avg_layers_executed, {"self": EMPTY}),
    (ACTTrainer, {"model": EMPTY, "optimizer": EMPTY, "device": None}),
    (ACTTrainer.train_step, {"self": EMPTY, "x_batch": EMPTY, "y_batch": EMPTY}),
    (ACTTrainer.get_average_metrics, {"self": EMPTY}),
    (ACTTrainer.reset_statistics, {"self": EMPTY}),
    (SequenceLengthPredictor, {"d_model": EMPTY, **BINS}),
    (
        SequenceLengthPredictor.forward,
        {"self": EMPTY, "x_embedded": EMPTY, "return_distribution": False},
    ),
    (AdaptiveSequenceLengthWrapper, {"base_model": EMPTY, **BINS, "length_penalty": 0.01}),
    (
        AdaptiveSequenceLengthWrapper.forward,
        {"self": EMPTY, "x": EMPTY, "use_adaptive_length": False},
    ),
    (
        AdaptiveSequenceLengthWrapper.compute_loss,
        {"self": EMPTY, "logits": EMPTY, "targets": EMPTY, "length_info": None},
    ),
    (AdaptiveSequenceLengthWrapper.get_length_statistics, {"self": EMPTY}),
    (AdaptiveSequenceLengthWrapper.reset_length_statistics, {"self": EMPTY}),
    (LearnedSequenceLengthTrainer, {"model": EMPTY, "optimizer": EMPTY, "device": None}),
    (
        LearnedSequenceLengthTrainer.train_step,
        {"self": EMPTY, "x_batch": EMPTY, "y_batch": EMPTY, "use_adaptive_length": True},
    ),
    (
        LearnedSequenceLengthTrainer.evaluate,
        {"self": EMPTY, "dataloader": EMPTY, "use_adaptive_length": True},
    ),
    (LearnedSequenceLengthTrainer.get_average_metrics, {"self": EMPTY}),
    (LearnedSequenceLengthTrainer.reset_statistics, {"self": EMPTY}),
    (BirmanSchwingerCore, {"n_seq": EMPTY, "epsilon": 1.0, "energy": -2.0}),
    (ScatteringRouter, {"num_experts": EMPTY}),
    (SemiseparableMatrix, {"n_seq": EMPTY, "rank": 16}),
    (LongContextTrainer, {"model": EMPTY, "optimizer": EMPTY, "device": None}),
    (LongContextTrainer.train_epoch, {"self": EMPTY, "dataloader": EMPTY, "epoch": 1}),
    (
        LongContextTrainer.train_multi_length,
        {"self": EMPTY, "dataloaders": EMPTY, "epochs": 1},
    ),
    (StreamingEvaluator, {"model": EMPTY, "chunk_size": 4096, "device": None}),
    (
        StreamingEvaluator.evaluate_streaming,
        {"self": EMPTY, "data": EMPTY, "max_tokens": None},
    ),
    (EarlyExitLanguageModel, {**SIZES, **EXPERTS, "confidence_threshold": 0.9}),
    (EarlyExitLanguageModel.forward, {"self": EMPTY, "x": EMPTY, "use_early_exit": False}),
    (EarlyExitLanguageModel.get_exit_statistics, {"self": EMPTY}),
    (EarlyExitLanguageModel.reset_exit_statistics, {"self": EMPTY}),
]


@pytest.mark.parametrize(("function", "expected"), SIGNATURES)
def test_arguments_and_defaults_are_those_of_the_guides(
    function: Any, expected: dict[str, Any]
) -> None:
    parameters = inspect.signature(function).parameters.values()
    by_place = {p.name: p.default for p in parameters if p.kind is not p.KEYWORD_ONLY}
    assert list(by_place.items()) == list(expected.items())
    further = [p for p in parameters if p.kind is p.KEYWORD_ONLY]
    assert all(p.default is not EMPTY for p in further), "a guide's snippet does not name these"
