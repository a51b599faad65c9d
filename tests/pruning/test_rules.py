"""Rules from outside the package: scores and recoveries by decorator, object, entry point and reference."""

from __future__ import annotations

import copy
import json
import pickle
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from torch import Tensor

from stepvar.models.output import as_json_value
from stepvar.pruning.interpolation import scatter_tokens
from stepvar.pruning.presets import ChangedPreset, resolve_pruning
from stepvar.pruning.recovery import RECOVERIES, Guided, KeptTokens, Nearest, Recovery, recovery
from stepvar.pruning.rules import load_rule
from stepvar.pruning.scores import SCORERS, ScoringInput, scorer, texture
from stepvar.pruning.selection import keep_highest
from stepvar.pruning.stepvar import StepVAR
from tiny_models import draw, make_transformer

LATE = {-2: 0.4, -1: 0.6}
DEPTH = 4


@pytest.fixture(scope="module")
def model():
    return make_transformer(depth=DEPTH)


@pytest.fixture
def own_rules():
    """Rules registered in a test are gone after it."""
    saved = [(registry, dict(registry._rules), registry._offered) for registry in (SCORERS, RECOVERIES)]
    yield
    for registry, known, offered in saved:
        registry._rules, registry._offered = known, offered


def first_channel(tokens: ScoringInput, *, sign: float = 1.0) -> Tensor:
    return sign * tokens.features[..., 0]


def prompt_influence(tokens: ScoringInput) -> Tensor:
    """How far the prompt has moved a token."""
    return (tokens.features - tokens.unconditional).norm(dim=-1)


class ZeroGain:
    """Pruned positions keep what they entered with; derived from nothing."""

    def before(self, features, grid):
        return features

    def after(self, kept: KeptTokens) -> Tensor:
        return scatter_tokens(kept.entry, kept.index, kept.features)


@dataclass(frozen=True)
class Blend(Recovery):
    """Nearest token, scaled."""

    factor: float = 1.0

    def after(self, kept: KeptTokens) -> Tensor:
        return self.factor * Nearest().after(kept)


def test_a_function_is_a_score(model):
    drawing = draw(model, pruning=StepVAR(LATE, score=first_channel))
    features = drawing.tensors["layer 0", 4][:1]
    assert torch.equal(drawing.reports[4].kept_index, keep_highest(features[..., 0], 38))
    low = draw(model, pruning=StepVAR(LATE, score=first_channel, score_options={"sign": -1.0}))
    assert torch.equal(low.reports[4].kept_index, keep_highest(-features[..., 0], 38))
    bound = draw(model, pruning=StepVAR(LATE, score=partial(first_channel, sign=-1.0)))
    assert bound.fingerprint() == low.fingerprint()


def test_a_score_sees_what_the_prompt_changed(model):
    drawing = draw(model, pruning=StepVAR(LATE, score=prompt_influence))
    conditional, unconditional = drawing.tensors["layer 0", 4].chunk(2)
    expected = keep_highest((conditional - unconditional).norm(dim=-1), 38)
    assert torch.equal(drawing.reports[4].kept_index, expected)


def test_objects_and_classes_are_recoveries(model):
    own = draw(model, pruning=StepVAR(LATE, recovery=ZeroGain()), guidance=1.0)
    entering, kept = own.tensors["layer 0", 4], own.reports[4].kept_index
    expected = scatter_tokens(entering, kept, own.tensors["layer 3", 4])
    assert torch.equal(own.tensors["logits", 4], own.session.logits(expected))
    assert draw(model, pruning=StepVAR(LATE, recovery=ZeroGain)).result.latent.shape
    nearest = draw(model, pruning=StepVAR(LATE))
    assert draw(model, pruning=StepVAR(LATE, recovery=Blend())).fingerprint() == nearest.fingerprint()
    assert draw(model, pruning=StepVAR(LATE, recovery=Blend(-1.0))).fingerprint() != nearest.fingerprint()


def test_one_object_serves_many_generations(model):
    method = StepVAR(LATE, recovery=ZeroGain(), score=first_channel)
    assert draw(model, pruning=method).fingerprint() == draw(model, pruning=method).fingerprint()


def test_guided_has_settings(model):
    default = draw(model, pruning=StepVAR(LATE, recovery="guided")).fingerprint()
    assert draw(model, pruning=StepVAR(LATE, recovery=Guided(2, 0.25))).fingerprint() == default
    assert draw(model, pruning=StepVAR(LATE, recovery=Guided(radius=3))).fingerprint() != default
    for wrong in ({"radius": 0}, {"bandwidth": 0.0}):
        with pytest.raises(ValueError, match=r"it must be"):
            Guided(**wrong)


def test_a_rule_shows_under_its_name(own_rules):
    method = StepVAR(LATE, score=first_channel, recovery=Blend(0.5))
    assert repr(method) == (
        "StepVAR(ratios={-2: 0.4, -1: 0.6}, score=first_channel, recovery=Blend(factor=0.5))"
    )
    settings = json.loads(json.dumps(as_json_value(method)))
    assert settings["score"] == "first_channel"
    assert settings["recovery"] == {"name": "Blend", "factor": 0.5}
    assert as_json_value(StepVAR(LATE))["recovery"] == "nearest"
    assert SCORERS.name_of(partial(first_channel, sign=-1.0)) == "first_channel(sign=-1.0)"
    scorer("first")(first_channel)
    assert StepVAR(LATE, score=first_channel) == StepVAR(LATE, score="first")
    assert repr(StepVAR(LATE, score=first_channel)) == "StepVAR(ratios={-2: 0.4, -1: 0.6}, score='first')"


def test_methods_stay_comparable_and_copyable():
    assert StepVAR(LATE, score=texture, recovery=Guided()) == StepVAR(
        LATE, score="texture", recovery="guided"
    )
    own = StepVAR(LATE, score=first_channel, score_options={"sign": -1.0})
    assert own == StepVAR(LATE, score=first_channel, score_options={"sign": -1.0})
    assert own != StepVAR(LATE, score=first_channel) != StepVAR(LATE, score=prompt_influence)
    for copied in (copy.deepcopy(own), pickle.loads(pickle.dumps(own))):
        assert copied == own and hash(copied) == hash(own)
    with pytest.raises(TypeError):
        own.ratios[-1] = 0.9


def test_decorated_rules_are_found_by_name(own_rules, model):
    @scorer("last channel")
    def last_channel(tokens):
        return tokens.features[..., -1]

    @recovery("doubled")
    class Doubled(Recovery):
        def after(self, kept):
            return 2.0 * Nearest().after(kept)

    assert "last channel" in SCORERS and "doubled" in list(RECOVERIES)
    method = StepVAR(LATE, score="last channel", recovery="doubled")
    assert draw(model, pruning=method).reports[4].kept_index.shape == (1, 38)

    @scorer("last channel")
    def last_channel(tokens):  # noqa: F811  # run again, as a cell of a notebook is
        return -tokens.features[..., -1]

    assert SCORERS["last channel"] is last_channel
    with pytest.raises(ValueError, match=r"already a score 'texture', stepvar.pruning.scores.texture"):
        scorer("texture")(last_channel)


def test_installed_packages_offer_rules(own_rules, monkeypatch, tmp_path, model):
    (tmp_path / "offered_rules.py").write_text("def first(tokens):\n    return tokens.features[..., 0]\n")
    package = tmp_path / "offered_rules-1.0.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: offered-rules\nVersion: 1.0\n")
    (package / "entry_points.txt").write_text(
        "[stepvar.scorers]\nfirst = offered_rules:first\nbroken = no_such_module:rule\n"
        "texture = offered_rules:first\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    SCORERS._offered = None
    with pytest.warns(UserWarning, match="Two scores are called 'texture'"):
        assert {"first", "broken"} <= set(SCORERS)
    assert SCORERS["texture"] is texture
    offered, own = (draw(model, pruning=StepVAR(LATE, score=score)) for score in ("first", first_channel))
    assert offered.fingerprint() == own.fingerprint()
    with pytest.raises(ValueError, match="The score 'broken' of offered-rules cannot be loaded: ModuleNot"):
        StepVAR(LATE, score="broken")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"score": 3}, r"A score is a name or a function .* this is 'int'"),
        ({"score": Nearest}, r"A score is a name or a function .* this is 'Nearest'"),
        ({"score": "magic"}, r"Unknown score 'magic'; known are structure\+texture, structure"),
        ({"recovery": 3}, r"A recovery is a name or an object with a method after\(kept\) .* 'int'"),
        ({"score_options": {"sign": 1}}, r"Score 'structure\+texture' takes no option 'sign'"),
        ({"score_options": {"kernel": 5}}, r"score_options holds 'kernel', which is a field"),
        ({"score": first_channel, "score_options": {"sing": 1}}, r"'first_channel' takes no option 'sing'"),
    ],
)
def test_what_is_no_rule_is_refused(fields, words):
    with pytest.raises(ValueError, match=words):
        StepVAR(LATE, **fields)


def test_results_of_the_wrong_shape_are_refused(model):
    def scalar(tokens):
        return tokens.features.sum()

    class Cut(Recovery):
        def after(self, kept):
            return kept.features

    with pytest.raises(ValueError, match=r"Score 'scalar' returned \(\); it must return one number a token"):
        draw(model, pruning=StepVAR(LATE, score=scalar))
    with pytest.raises(ValueError, match=r"Recovery 'Cut' returned \(2, 38, 64\); it must return the hidden"):
        draw(model, pruning=StepVAR(LATE, recovery=Cut()))


def test_references_name_functions_of_modules(tmp_path):
    (tmp_path / "own_rules_for_test.py").write_text("def rule(tokens):\n    return tokens\n")
    (tmp_path / "broken_rules_for_test.py").write_text("import no_such_module_at_all\n")
    assert load_rule("own_rules_for_test:rule", tmp_path).__name__ == "rule"
    for reference, words in (
        ("no_such_module_at_all:rule", r"There is no module 'no_such_module_at_all': run in the folder"),
        ("own_rules_for_test:roule", r"Module 'own_rules_for_test' has no 'roule'"),
        ("broken_rules_for_test:rule", r"cannot be imported: No module named 'no_such_module_at_all'"),
        ("own rules:rule", r"names no rule: write module:function"),
        ("json", r"names no rule"),
    ):
        with pytest.raises(ValueError, match=words):
            load_rule(reference, tmp_path)


def test_a_preset_can_take_another_rule():
    from stepvar.models.infinity.presets import PRESETS

    paper = PRESETS["paper"].method
    found = resolve_pruning(ChangedPreset("paper", {"score": first_channel}), PRESETS)
    assert found == StepVAR(paper.ratios, paper.skip, score=first_channel)
    with pytest.raises(ValueError, match=r"score is no field of FastVAR \(preset 'fastvar'\)"):
        resolve_pruning(ChangedPreset("fastvar", {"score": "texture"}), PRESETS)
    with pytest.raises(ValueError, match="Unknown pruning preset 'papr'"):
        resolve_pruning(ChangedPreset("papr", {}), PRESETS)


def test_presets_cannot_be_edited():
    import stepvar

    with pytest.raises(TypeError):
        stepvar.PRESETS["InfinityPipeline"]["paper"] = None
    with pytest.raises(TypeError):
        stepvar.PRESETS["InfinityPipeline"]["paper"].method.ratios[-1] = 0.9
    for presets in stepvar.PRESETS.values():
        for name, preset in presets.items():
            assert preset.name == name and preset.description and preset.measured_on
            assert "\n" not in preset.description + preset.measured_on
