"""Training of LLaVA-VR and LLaVA-NeXT models in the phases of Vision Remember, on transformers' ``Trainer``."""

from vr_kernels.models.training.bad_samples import BadSampleError, BadSamples
from vr_kernels.models.training.chat import ChatEncoder
from vr_kernels.models.training.collator import ConversationCollator
from vr_kernels.models.training.config import TrainConfig
from vr_kernels.models.training.conversations import ConversationDataset, to_messages
from vr_kernels.models.training.phases import GROUPS, PHASES, GroupSize, set_phase
from vr_kernels.models.training.run import TrainResult, train
from vr_kernels.models.training.templates import TEMPLATES

__all__ = [
    "GROUPS",
    "PHASES",
    "TEMPLATES",
    "BadSampleError",
    "BadSamples",
    "ChatEncoder",
    "ConversationCollator",
    "ConversationDataset",
    "GroupSize",
    "TrainConfig",
    "TrainResult",
    "set_phase",
    "to_messages",
    "train",
]
