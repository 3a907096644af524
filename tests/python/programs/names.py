"""What programs import of DeepSpeed, and what they are told of the rest. Prints the messages."""
import importlib.util
import json

import deepspeed
import deepspeed.utils.logging
from deepspeed.accelerator import get_accelerator
from deepspeed.ops.adam import DeepSpeedCPUAdam, FusedAdam
from deepspeed.runtime.engine import DeepSpeedEngine
from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus
from deepspeed.utils import safe_get_full_fp32_param

assert importlib.util.find_spec("deepspeed") and not hasattr(deepspeed, "no_such_name") and ZeroParamStatus.AVAILABLE
assert get_accelerator().current_device_name() == "cpu" and issubclass(DeepSpeedCPUAdam, FusedAdam)
assert deepspeed.DeepSpeedEngine is DeepSpeedEngine and deepspeed.utils.logging.logger is deepspeed.utils.logger
assert safe_get_full_fp32_param


def message(code):
    try:
        exec(code)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


print("RESULT", json.dumps([message(code) for code in (
    "from deepspeed.utils import no_such_name", "import deepspeed.no_such_module", "deepspeed.no_such_name",
    "get_accelerator().no_such_name", "deepspeed.PipelineModule(layers=[])")]))
