"""The tests of the operators on token rows once more, in the process where Triton is a backend that can run."""

from python_tests.ops.test_gather_tokens import *  # noqa: F403
from python_tests.ops.test_scatter_add_tokens import *  # noqa: F403
from python_tests.ops.test_text_guide_token import *  # noqa: F403
