"""What changes the product, apart from the model: checked, and brought into the one form that the key has.

SessionOptions cannot be asked what entries it has, so those that are known to change a graph are asked for one by one
(`GRAPH_ENTRIES`). Numbers of threads are not among them: they were measured to change nothing in the product.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from .. import platforms
from ..errors import UsageError
from . import runtime

LEVELS = ("disable", "basic", "extended", "layout", "all")
CPU = "CPUExecutionProvider"
MODEL = "model.onnx"  # What the optimised model is called, in its directory.
_PORTABLE = {"disable", "basic", "extended"}  # Above, onnxruntime chooses layouts by what the processor can do.
# Below, a tensor stays in the graph's own file: thousands of small maps cost more than they save (docs/onnx.md).
EXTERNAL_BYTES_MIN = 16384
GRAPH_ENTRIES = (
    "ep.cuda.fpa_intb_gemm",
    "ep.cuda.fpa_intb_profile_m",
    "ep.enable_weightless",
    "mlas.disable_kleidiai",
    "mlas.enable_gemm_fastmath_arm64_bfloat16",
    "mlas.kleidiai.conv_igemm_max_work",
    "mlas.nchwc_depthwise_sliding",
    "mlas.nchwc_pointwise_conv_max_input_channel_batch",
    "mlas.qnbit.force_fp32",
    "mlas.use_lut_gemm",
    "optimization.constant_folding_max_output_size_in_bytes",
    "optimization.disable_specified_optimizers",
    "optimization.enable_cast_chain_elimination",
    "optimization.enable_gelu_approximation",
    "optimization.minimal_build_optimizations",
    "session.allow_released_opsets_only",
    "session.debug_layout_transformation",
    "session.disable_aot_function_inlining",
    "session.disable_cpu_ep_fallback",
    "session.disable_double_qdq_remover",
    "session.disable_prepacking",
    "session.disable_qdq_constant_folding",
    "session.disable_quant_qdq",
    "session.enable_dq_matmulnbits_fusion",
    "session.enable_quant_qdq_cleanup",
    "session.function_expansion_byte_limit",
    "session.function_expansion_node_limit",
    "session.gqa_value_layout",
    "session.graph_optimizations_loop_level",
    "session.layer_assignment_settings",
    "session.name_based_layer_assignment",
    "session.node_partition_config_file",
    "session.qdq_matmulnbits_accuracy_level",
    "session.qdq_matmulnbits_block_size",
    "session.qdqisint8allowed",
    "session.resource_cuda_partitioning_settings",
    "session.set_denormal_as_zero",
    "session.strict_shape_type_inference",
    "session.x64quantprecision",
)
# Variables that onnxruntime reads where it chooses layouts of weights, or takes options from the model itself.
_VARIABLES = (
    "ORT_LOAD_CONFIG_FROM_MODEL",
    "ORT_MLAS_QKGEMM_S8_APPROX_VNNI",
    "ORT_QMOE_CPU_QNBIT_GEMM",
    "ORT_USE_MLAS_Q4_GEMM_MOE",
)
_OF_RECIPE = frozenset({
    "config", "file", "force", "free_dimensions", "level", "prepack", "providers", "timeout", "verify",
})  # fmt: skip
_PLAIN_VALUE = re.compile(r"[A-Za-z0-9_:,+-]*")  # Neither a path nor the name of a library.
_FROM_A_PROGRAM = "Call modelcache.onnx.optimize from a program of your own"
# Ours: what they say is decided here.
_RESERVED = (
    "session.optimized_model",
    "session.save_",
    "session.load_model_format",
    "session.model_external_initializers_file_folder_path",
    "session.use_ort_model_bytes",
    "ep.context_",
)


@dataclass(frozen=True, slots=True)
class Options:
    """What a product is made with.

    Attributes:
        level: One of `LEVELS`.
        prepack: Whether the weights are saved as the processor's kernels want them.
        providers: Names and options, in order.
        config: Configuration entries of the session.
        free_dimensions: Sizes of named dimensions.
        custom_ops: Absolute paths of libraries with operators.
        deterministic: ``use_deterministic_compute``.
        compared: What outputs were compared, and how closely; None if none were.
    """

    level: str = "all"
    prepack: bool = True
    providers: tuple[tuple[str, dict[str, str]], ...] = ((CPU, {}),)
    config: Mapping[str, str] = field(default_factory=dict)
    free_dimensions: Mapping[str, int] = field(default_factory=dict)
    custom_ops: tuple[str, ...] = ()
    deterministic: bool = False
    compared: Mapping[str, Any] | None = None

    @property
    def params(self) -> dict[str, Any]:
        """What of it counts in the key, as JSON values."""
        return {
            "level": self.level,
            "prepack": self.prepack,
            "providers": [[name, values] for name, values in self.providers],
            "config": dict(self.config),
            "free_dimensions": dict(self.free_dimensions),
            "custom_ops": [_digest_of(path) for path in self.custom_ops],
            "deterministic": self.deterministic,
            "external_bytes_min": EXTERNAL_BYTES_MIN,
            **({"compared": dict(self.compared)} if self.compared else {}),
        }

    @property
    def platform(self) -> dict[str, Any]:
        """What of this machine counts in the key: more, the more the product is made for it."""
        found: dict[str, Any] = {**platforms.system(), "onnxruntime": runtime.facts()}
        variables = {name: os.environ[name] for name in _VARIABLES if os.environ.get(name)}
        if variables:
            found["environment"] = variables
        if self.prepack or self.level not in _PORTABLE or any(name != CPU for name, _ in self.providers):
            found |= {"cpu": platforms.cpu(), "os_build": platforms.os_build()}
        return found

    def session_options(self) -> Any:
        """Return new options of a session that are these."""
        return runtime.options(
            config=self.config,
            free_dimensions=self.free_dimensions,
            custom_ops=self.custom_ops,
            deterministic=self.deterministic,
        )

    def compared_with(self, facts: Mapping[str, Any] | None) -> Options:
        """Return these, where outputs were compared as *facts* say."""
        return replace(self, compared=facts)


def given(
    *,
    level: str | None,
    prepack: bool,
    providers: Sequence[Any] | None,
    provider_options: Sequence[Mapping[Any, Any]] | None,
    config: Mapping[str, Any] | None,
    free_dimensions: Mapping[str, int] | None,
    custom_ops: Sequence[str | os.PathLike[str]],
    session_options: Any = None,
    installed: Sequence[str] | None = None,
) -> Options:
    """Return what a caller wants, checked. *installed* takes the place of the installed providers, for tests.

    Raises:
        UsageError: An argument makes no sense.
        ProviderNotInstalledError: This onnxruntime lacks a provider.
    """
    if isinstance(custom_ops, str | bytes | os.PathLike):
        raise UsageError(problem=f"custom_ops={custom_ops!r:.200} makes no sense: a list of libraries")
    chosen = providers_of(providers, provider_options)
    runtime.check_installed([name for name, _ in chosen], installed)
    entries = _config(config)
    deterministic = False
    if session_options is not None:
        if not isinstance(session_options, runtime.library().SessionOptions):
            raise UsageError(problem=f"session_options={session_options!r:.200} is no onnxruntime.SessionOptions")
        if entries or free_dimensions:
            problem = "config and free_dimensions go into new options, and session_options were given"
            raise UsageError(
                problem=problem, hint="Add config entries to session_options, or leave session_options out"
            )
        level = level or runtime.level_of(session_options)
        deterministic = bool(session_options.use_deterministic_compute)
        asked = ((key, runtime.entry_of(session_options, key)) for key in GRAPH_ENTRIES)
        entries = {key: value for key, value in asked if value is not None}
    level = level or "all"
    if level not in LEVELS:
        raise UsageError(problem=f"level={level!r} makes no sense: one of {', '.join(LEVELS)}")
    return Options(
        level=level,
        prepack=prepack and entries.get("session.disable_prepacking", "0") != "1",
        providers=chosen,
        config=entries,
        free_dimensions=_dimensions(free_dimensions),
        custom_ops=runtime.custom_op_files(custom_ops),
        deterministic=deterministic,
    )


def providers_of(
    providers: Sequence[Any] | None, provider_options: Sequence[Mapping[Any, Any]] | None
) -> tuple[tuple[str, dict[str, str]], ...]:
    """Return names and options of providers, in order; as onnxruntime takes them. None means the processor.

    Raises:
        UsageError: They make no sense.
    """
    if providers is None:
        if provider_options is not None:
            raise UsageError(problem="provider_options were given, and no providers that they belong to")
        return ((CPU, {}),)
    pairs: list[tuple[Any, Any]] = []
    if isinstance(providers, str) or not providers:
        raise UsageError(problem=f"providers={providers!r} makes no sense: a list of names, first choice first")
    for index, one in enumerate(providers):
        name, own = one if isinstance(one, tuple) and len(one) == 2 else (one, {})
        if provider_options is not None:
            if len(provider_options) != len(providers) or own:
                raise UsageError(problem="provider_options are one dict for each of providers, which are then names")
            own = provider_options[index]
        pairs.append((name, own))
    if not all(isinstance(name, str) and isinstance(own, Mapping) for name, own in pairs):
        raise UsageError(problem=f"providers={providers!r:.200} makes no sense: names, or tuples of a name and a dict")
    if len({name for name, _ in pairs}) != len(pairs):
        raise UsageError(problem=f"providers={providers!r:.200} names one twice")
    return tuple((name, {str(key): str(value) for key, value in own.items()}) for name, own in pairs)


def of_recipe(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a recipe as `given` takes them. They may come from a stranger's manifest.

    Raises:
        UsageError: One is not known, or could name a file.
    """
    for name in options:
        if name not in _OF_RECIPE:
            problem = f"the recipe onnx has no option {name!r}"
            raise UsageError(problem=problem, hint=f"It has {', '.join(sorted(_OF_RECIPE))}")
    found = dict(options)
    for key in found.get("config") or {}:
        if key not in GRAPH_ENTRIES or key.endswith("_file"):
            raise UsageError(problem=f"the recipe onnx takes no configuration entry {key!r}", hint=_FROM_A_PROGRAM)
    if isinstance(found.get("providers"), list):
        found["providers"] = [tuple(one) if isinstance(one, list) else one for one in found["providers"]]
    for name, own in providers_of(found.get("providers"), None):
        for key, value in own.items():
            if not _PLAIN_VALUE.fullmatch(value):
                problem = f"the recipe onnx takes no {key}={value!r} of {name}: it could name a file"
                raise UsageError(problem=problem, hint=_FROM_A_PROGRAM)
    return found


def _config(config: Mapping[str, Any] | None) -> dict[str, str]:
    for key in config or {}:
        if not isinstance(key, str) or key.startswith(_RESERVED):
            raise UsageError(problem=f"the configuration entry {key!r} is set by modelcache itself")
    # onnxruntime knows "1" and "0", and takes "True" for neither.
    return {key: str(int(value) if isinstance(value, bool) else value) for key, value in (config or {}).items()}


def _dimensions(sizes: Mapping[str, int] | None) -> dict[str, int]:
    found = dict(sizes or {})
    for name, size in found.items():
        if not isinstance(name, str) or isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise UsageError(problem=f"free_dimensions={found!r:.200} makes no sense: names, and sizes from 1")
    return found


_digests: dict[tuple[str, int, int, int], str] = {}
_DIGESTS_MAX = 256


def _digest_of(path: str) -> str:
    """Return the digest of a library; it is read once in a process, and when it has changed.

    Raises:
        UsageError: It cannot be read.
    """
    try:
        found = os.stat(path)
        seen = path, found.st_ino, found.st_size, found.st_mtime_ns
        if seen not in _digests:
            if len(_digests) >= _DIGESTS_MAX:
                _digests.clear()
            from ..files import digest_of

            _digests[seen] = digest_of(path)[0]
        return _digests[seen]
    except OSError as error:
        reason = error.strerror or str(error)
        raise UsageError(problem=f"the library with operators {path!r} cannot be read: {reason}") from error
