"""lmms-eval finds our models by name, and asks them what it asks its own."""

from __future__ import annotations

import importlib
import pkgutil
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from python_tests.models import _folders, _llava_vr, _lmms_eval
from python_tests.models._lmms_eval import DOCUMENTS, PLACE, Instance, generations, images_of
from vr_kernels.models.inference import Assistant
from vr_kernels.models.prompts import user_message

NAME = "vr_kernels.models.lmms_eval"
PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"
GREEDY = {"max_new_tokens": 5, "temperature": 0, "until": ["\n\n"]}


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Imported beside a stand-in of lmms-eval, which is not installed for the tests."""
    _lmms_eval.install(monkeypatch)
    monkeypatch.delitem(sys.modules, NAME, raising=False)
    module = importlib.import_module(NAME)
    monkeypatch.setitem(sys.modules, NAME, module)  # and forgotten in the end
    return module


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _folders.save_llava_vr(tmp_path_factory.mktemp("lmms_eval"))


@pytest.fixture
def model(module: Any, folder: Path) -> Any:
    model = module.EvaluatedAssistant(str(folder), batch_size="2")
    model.task_dict = {PLACE[0]: {PLACE[1]: DOCUMENTS}}
    return model


def test_the_entry_point_names_a_class_of_lmms_eval(module: Any) -> None:
    section = PYPROJECT.read_text().split('[project.entry-points."lmms_eval.models"]')[1]
    target = re.match(r'\s*vr_kernels = "(.*)"', section)
    assert target is not None
    manifest = pkgutil.resolve_name(target[1])()
    assert isinstance(manifest, _lmms_eval.ModelManifest)
    assert manifest.model_id == "vr_kernels"
    assert manifest.aliases == ("llava_vr",)
    named = pkgutil.resolve_name(manifest.simple_class_path.replace(f"{NAME}.", f"{NAME}:"))
    assert issubclass(named, _lmms_eval.lmms)
    assert named.is_simple


def alone(folder: Path, number: int, **options: Any) -> str:
    assistant, document = Assistant.load(folder), DOCUMENTS[number]
    images = document["images"] or []
    inputs = assistant.inputs([[user_message(document["question"], len(images))]], [images])
    return assistant.generate(inputs, **{"max_new_tokens": 5, "do_sample": False, **options})[0]


def test_answers_come_in_the_order_of_the_requests_each_with_its_own_options(model: Any, folder: Path) -> None:
    answers = model.generate_until(generations(GREEDY, GREEDY | {"max_new_tokens": 3}, GREEDY))
    assert answers == [alone(folder, 0), alone(folder, 1, max_new_tokens=3), alone(folder, 2)]


def test_prompts_of_one_batch_are_answered_as_alone(model: Any, folder: Path) -> None:
    assert model.generate_until(generations(GREEDY, GREEDY, GREEDY)) == [alone(folder, i) for i in range(3)]


@pytest.mark.parametrize("many", [False, True])
def test_an_answer_ends_where_the_task_says(model: Any, folder: Path, many: bool) -> None:
    whole = alone(folder, 0)
    stop = whole.split()[2]
    options = GREEDY | {"until": ["nowhere", stop] if many else stop}
    assert model.generate_until(generations(options, GREEDY, GREEDY))[0] == whole.split(stop)[0]


def test_a_temperature_draws(model: Any) -> None:
    drawn = GREEDY | {"temperature": 2.0, "max_new_tokens": 12}
    assert model.generate_until(generations(drawn, GREEDY, GREEDY)) != model.generate_until(
        generations(drawn, GREEDY, GREEDY)
    )


def test_what_a_task_asks_of_another_model_is_left_out_and_said_once(
    model: Any, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    asked = GREEDY | {"image_aspect_ratio": "original"}
    assert model.generate_until(generations(asked, GREEDY, asked)) == [alone(folder, number) for number in range(3)]
    assert [record.getMessage() for record in caplog.records if record.name == "vr_kernels"] == [
        "of generation_kwargs image_aspect_ratio left out: no option of transformers' generate"
    ]


def test_the_likelihood_is_that_of_the_target_of_each_document(model: Any, folder: Path) -> None:
    asked = [
        Instance((DOCUMENTS[0]["question"], lambda document: document["answer"], images_of, 0, *PLACE)),
        Instance((DOCUMENTS[2]["question"], " w7 w8", images_of, 2, *PLACE)),
        Instance(("", "w7 w8")),  # of mutual information: an answer without a document
    ]
    assistant = Assistant.load(folder)
    assert [result.text for result in model.loglikelihood(asked)] == [
        assistant.score([user_message("w1 w2", 1)], DOCUMENTS[0]["images"], "w5"),
        assistant.score([user_message("w6", 0)], [], " w7 w8"),
        assistant.score([user_message("", 0)], [], "w7 w8"),
    ]


def test_the_guide_sees_the_prompt_alone(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first token's likelihood does not change with what follows it in the answer."""
    seen = []
    forward = type(model.assistant.model).forward

    def observed(self: Any, *args: Any, **kwargs: Any) -> Any:
        output = forward(self, *args, **kwargs)
        seen.append(output.logits[0, -3].clone())
        return output

    monkeypatch.setattr(type(model.assistant.model), "forward", observed)
    model.loglikelihood(
        [Instance((DOCUMENTS[0]["question"], answer, images_of, 0, *PLACE)) for answer in ("w5 w9", "w5 w20")]
    )
    assert (seen[0] == seen[1]).all()


def test_an_image_may_come_as_a_file(model: Any, folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "image.png"
    DOCUMENTS[0]["images"][0].save(file)
    (asked,) = generations(GREEDY, GREEDY, GREEDY)[:1]
    asked = Instance((*asked.args[:2], lambda document: [str(file)], *asked.args[3:]))
    assert model.generate_until([asked]) == [alone(folder, 0)]


def test_tasks_of_several_rounds_are_refused_in_words(model: Any) -> None:
    (asked,) = generations(GREEDY, GREEDY, GREEDY)[:1]
    words = (
        f"vr_kernels: task {asked.args[-2]} is of output type generate_until_multi_round; it must be generate_until or"
    )
    with pytest.raises(ValueError, match=words):
        model.generate_until_multi_round([asked])


def test_an_unknown_argument_is_refused_with_the_known_ones(module: Any, folder: Path) -> None:
    with pytest.raises(ValueError, match="use_cache is no argument of this model; it has pretrained, device"):
        module.EvaluatedAssistant(str(folder), use_cache=True)


def test_what_lmms_eval_adds_by_itself_is_taken(module: Any, folder: Path) -> None:
    model = module.EvaluatedAssistant(str(folder), batch_size=1, max_batch_size=None, device="cpu")
    assert model.device.type == "cpu"
    assert model.assistant.model.config.image_token_id == _llava_vr.IMAGE


def test_it_can_be_imported_without_lmms_eval() -> None:
    assert importlib.import_module(NAME).EvaluatedAssistant.is_simple
