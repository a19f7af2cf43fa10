"""Networks for other programs: ONNX, torch.export and ExecuTorch programs, safetensors, and plain C."""

from prunekit.export.c_header import CHeader, export_c
from prunekit.export.common import Exported
from prunekit.export.mobile import export_executorch
from prunekit.export.programs import export_onnx, export_program, export_safetensors

__all__ = [
    "CHeader",
    "Exported",
    "export_c",
    "export_executorch",
    "export_onnx",
    "export_program",
    "export_safetensors",
]
