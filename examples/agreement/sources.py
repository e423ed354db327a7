"""Whose code ours is run beside: repositories, commits and files, fetched as they are and loaded unchanged."""

from __future__ import annotations

import hashlib
import importlib.util
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
AUTHORS = ROOT / "build" / "agreement"
PACKAGE = "authors"  # under which their modules are loaded
# Where the authors' code came before transformers 5. Its own requirements stand beside it; torch is that of today.
OLD_TRANSFORMERS = ROOT / "build" / "transformers-4.37.2"
OLD_PACKAGES = ("transformers==4.37.2", "tokenizers==0.15.2", "huggingface_hub==0.23.5", "einops==0.8.2")


class Source(NamedTuple):
    repository: str
    commit: str
    files: dict[str, str]  # path to sha256


SOURCES = {
    "LLaVA": Source("haotian-liu/LLaVA", "c121f0432da27facab705978f83c4ada465e46fd", {
        "llava/model/multimodal_projector/builder.py":
            "19f127682ffad6a7bb71a35fc7a463dbb3eb76594180ba54931bee02331a0bd9",
    }),
    "MobileVLM": Source("Meituan-AutoML/MobileVLM", "688fdec914810485c8766da96c63d9d2ce15f750", {
        "mobilevlm/model/vision_projector.py":
            "fc8905e36ce53896af5de4cc7c5ad975cd2d6ac427a510c306e0d56ea288918a",
    }),
    "InternVL": Source("OpenGVLab/InternVL", "2410d1dbf208f0e799459aff9376e5747dbf41a2", {
        "internvl_chat/internvl/model/internvl_chat/modeling_internvl_chat.py":
            "13caa403ddfc3abfd4e7bd784841d6689ef2d8fcbcb5ef4b6c606dd209949537",
    }),
    "MiniCPM_V_2_6": Source("404805854/minicpmv2.6-onnx", "48804ee7110d544e367f808ff8f74c04048b78fb", {
        "resampler.py":
            "a925aff0feeee09884e4409b798780da1a18fbcd1134eda10c97dd4b0305800a",
    }),
    "OmniLMM": Source("OpenBMB/MiniCPM-V", "0dbb566de090067266abb76e702fb289f09934c5", {
        "omnilmm/model/resampler.py":
            "093b33dea6f2440ce5ac6157a564fff55a3ce7e3e2ec6d738cfd49d1332a4f80",
    }),
    "TokenPacker": Source("CircleRadon/TokenPacker", "771a16e7462c3afb908a0c429513ba43f709f2c1", {
        "llava/model/multimodal_projector/builder.py":
            "205e8bc69321dc960592e7512bb924616e2983a92979da2111ed7711f225e488",
    }),
    "LLaVA_STF": Source("visresearch/LLaVA-STF", "0b849255ec12828fa26b45e952ee4667795a8c48", {
        "llava/model/multimodal_projector/builder.py":
            "c18b6d3fa8c58bddcce59689e6ec4aa7969e5979652e10dde6b664c9ba48a948",
        "llava/model/llava_arch.py":
            "e10dcfa3f32603b13c15ba0d338160881a01c8508cb68367f10331a8f4402903",
    }),
    "Cambrian": Source("cambrian-mllm/cambrian", "539ffc3254bba004e5d012b65c0ad6cb308897c5", {
        "cambrian/model/vision_sampler.py":
            "43b0b4cc9b5c46f0a21b0a72d49da6b7ba82cf80a3f8338da46a4074546b07f3",
        "cambrian/model/cambrian_arch.py":
            "9490a153efd7c1df11049fd7062a87a0a0f5ccb18044d05d6ed40b163313b0e6",
    }),
    "VisionZip": Source("dvlab-research/VisionZip", "3151f6df4fca36a4cd1c985e5956e725b1f9ad02", {
        "visionzip/clip_encoder.py":
            "d549cc89e53076267c27a1dbbc6d7b3f1110e45fe8333f4d50633d55c1782dee",
        "visionzip/utils.py":
            "eff452a6ece88a9e6760410e3f33b69cf23ba89566bc404422489a027d8d3326",
        "visionzip/llava_arch.py":
            "7ba7ba198b16a5584329811ff7d0fb569218c54ac4bd8cd66089034e97e1f686",
    }),
    "VisPruner": Source("Theia-4869/VisPruner", "aefa01adc7c7ce6334e880c88225e90cede760d1", {
        "llava/model/llava_arch.py":
            "5559d52a05fd77e39aa82cfe4e05835adea787604fdab8ad4588291bb6e843b2",
        "llava/model/multimodal_encoder/clip_encoder.py":
            "b11b6f6b37e839be81e5de200fceb2dad2e8212e9ac9e4e9087d4f835a314268",
    }),
    "FastV": Source("pkunlp-icler/FastV", "d1659729b5bf1be225e99ee15783deeea80f63b1", {
        "src/transformers/src/transformers/models/llama/modeling_llama.py":
            "b06cde51267b635100763d58f5f1b9b5933c769bd203936146d34ecd3c242b08",
    }),
    "PyramidDrop": Source("Cooperx521/PyramidDrop", "6444f304aee4b7edcb022839fb9e8cd07859704a", {
        "llava/model/modeling_llama_pdrop.py":
            "096c324dff27819f225406a7e60d3e6f61063e84b1ed2d0179c8c8a4e26dde5c",
    }),
    "SparseVLM": Source("Gumpest/SparseVLMs", "26a5f48813c46cd1c7364160354e7fdd3febaa67", {
        "llava/model/language_model/modelling_sparse_llama.py":
            "6285ea108124520bf47c6ba9f9987b1ff2437b6d4193d34f81aefea0566cb222",
        "llava/model/language_model/score.py":
            "e0a3741e23e6da4358b664b6347db8b84a91429e71b3fea5c6898fff718c06a0",
        "llava/model/language_model/utils.py":
            "f5f7d31dd8606d49266b8ec570de2dc4ad48fdffa13d0f200b5ee74a1b905c25",
    }),
}  # fmt: skip


def checked(name: str, content: bytes, expected: str) -> bytes:
    """``content``, if its sha256 is the expected one."""
    found = hashlib.sha256(content).hexdigest()
    if found != expected:
        raise ValueError(f"{name} is not the file compared with: its sha256 is {found}, and sources.py has {expected}")
    return content


def fetch() -> None:
    """Every file that is not there yet, as it was at its commit, and the old transformers."""
    for key, source in SOURCES.items():
        for path, digest in source.files.items():
            file = AUTHORS / key / path
            address = f"https://raw.githubusercontent.com/{source.repository}/{source.commit}/{path}"
            if file.exists():
                checked(str(file), file.read_bytes(), digest)
                continue
            with urllib.request.urlopen(address, timeout=60) as answer:
                content = checked(address, answer.read(), digest)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
    if not OLD_TRANSFORMERS.exists():
        pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--target", str(OLD_TRANSFORMERS)]
        subprocess.run([*pip, *OLD_PACKAGES], check=True)


def load(key: str, path: str, absent: Sequence[str] = (), **names: Any) -> Any:
    """The module in one fetched file.

    ``absent`` names packages that it imports and that what is compared does not use. Those of them that are not
    installed, and what of its own repository was not loaded before, it finds empty. ``names`` are put into it first.
    """
    file = AUTHORS / key / path
    if not file.exists():
        raise FileNotFoundError(f"{file} is not there; `python -m examples.agreement fetch` fetches it")
    checked(str(file), file.read_bytes(), SOURCES[key].files[path])
    name = ".".join((PACKAGE, key, *Path(path).with_suffix("").parts))
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ValueError(f"{file} is no Python file")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    vars(module).update(names)
    with empty_modules((PACKAGE, *absent)):
        spec.loader.exec_module(module)
    return module


@contextmanager
def empty_modules(packages: Sequence[str]) -> Iterator[None]:
    finder = EmptyModules(packages)
    sys.meta_path.append(finder)  # last: what is there is found before
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in [name for name, module in sys.modules.items() if isinstance(module, EmptyModule)]:
            del sys.modules[name]  # nobody else may take it for the package


class EmptyModule(ModuleType):
    """Whatever is imported from it is a class that does nothing."""

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {"__init__": lambda self, *arguments, **named: None})


class EmptyModules(MetaPathFinder, Loader):
    def __init__(self, packages: Sequence[str]) -> None:
        self.packages = packages

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        return ModuleSpec(name, self, is_package=True) if name.split(".")[0] in self.packages else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return EmptyModule(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """It is empty."""
