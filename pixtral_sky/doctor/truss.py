"""What Truss lets pass without a word, found in the files of a Truss for Pixtral before they are deployed.

Only `truss push` looks for keys that it does not know, and nothing looks at whether the files agree with each
other, or with the GPU. Pure: config.yaml and README.md are read, and nothing else.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pixtral_sky import memory
from pixtral_sky.deploy import task
from pixtral_sky.doctor.checks import Check, State
from pixtral_sky.errors import PixtralSkyError, UsageError

TRUSS = "0.18.35"

# Every mapping of a config.yaml that has keys of its own, by its path, and they. From the models of Truss's
# package (tests/real/truss compares); what is at no such path may have any key.
KEYS = {
    "": (
        "apply_library_patches base_image bdn bis_llm build build_commands bundled_packages_dir "
        "cache_internal data_dir description docker_server environment_variables examples_filename "
        "external_data external_package_dirs input_type live_reload model_cache model_class_filename "
        "model_class_name model_framework model_metadata model_module_dir model_name model_type "
        "python_version requirements requirements_file resources runtime secrets spec_version "
        "system_packages training_checkpoints trt_llm use_local_src weights"
    ),
    "base_image": "docker_auth image python_executable_path",
    "base_image.docker_auth": (
        "auth_method aws_access_key_id_secret_name aws_assume_role_arn aws_assume_role_region "
        "aws_oidc_region aws_oidc_role_arn aws_secret_access_key_secret_name gcp_oidc_service_account "
        "gcp_oidc_workload_id_provider registry secret_name"
    ),
    "bdn": "access hotload mounts",
    "bdn.access": "grants namespace",
    "bdn.hotload": "enabled",
    "bdn.mounts": "exclude include path source",
    "bis_llm": "additional_autoscaling_config config version",
    "bis_llm.additional_autoscaling_config": "metrics",
    "bis_llm.additional_autoscaling_config.metrics": "name target",
    "build": "arguments model_server no_cache secret_to_path_mapping",
    "cache_internal": (
        "allow_patterns ignore_patterns kind repo_id revision runtime_secret_name use_volume volume_folder"
    ),
    "docker_server": (
        "liveness_endpoint no_build predict_endpoint readiness_endpoint run_as_user_id server_port "
        "start_command"
    ),
    "external_data": "backend local_data_path name url",
    "model_cache": (
        "allow_patterns ignore_patterns kind repo_id revision runtime_secret_name use_volume volume_folder"
    ),
    "resources": "accelerator cpu fabric instance_type memory node_count",
    "resources.accelerator": "accelerator count",
    "resources.fabric": "preferences use_rdma",
    "runtime": (
        "egress_restrictions enable_debug_logs enable_tracing_data health_checks is_websocket_endpoint "
        "oidc predict_concurrency remote_ssh streaming_read_timeout transport "
        "truss_server_version_override"
    ),
    "runtime.egress_restrictions": "fqdn_allow_list ip_allow_list",
    "runtime.health_checks": (
        "restart_check_delay_seconds restart_threshold_seconds startup_threshold_seconds "
        "stop_traffic_threshold_seconds"
    ),
    "runtime.oidc": "enabled",
    "runtime.remote_ssh": "enabled",
    "runtime.transport": "kind ping_interval_seconds ping_timeout_seconds",
    "training_checkpoints": "artifact_references download_folder loops_checkpoint_ids",
    "training_checkpoints.artifact_references": "paths training_job_id",
    "trt_llm": "build inference_stack runtime version_overrides",
    "trt_llm.build": (
        "base_model checkpoint_repository gather_all_token_logits lora_adapters lora_configuration "
        "max_batch_size max_beam_width max_num_tokens max_prompt_embedding_table_size max_seq_len "
        "moe_expert_parallel_option num_builder_gpus pipeline_parallel_count plugin_configuration "
        "quantization_config quantization_type sequence_parallel_count skip_build_result speculator "
        "strongly_typed tensor_parallel_count"
    ),
    "trt_llm.build.checkpoint_repository": "repo revision runtime_secret_name source",
    "trt_llm.build.lora_configuration": "lora_target_modules max_lora_rank",
    "trt_llm.build.plugin_configuration": "paged_kv_cache use_fp8_context_fmha use_paged_context_fmha",
    "trt_llm.build.quantization_config": "calib_dataset calib_max_seq_length calib_size",
    "trt_llm.runtime": (
        "batch_scheduler_policy enable_chunked_context enable_chunked_prefill "
        "kv_cache_free_gpu_mem_fraction kv_cache_host_memory_bytes lora_cache_gpu_memory_fraction "
        "lora_cache_host_memory_bytes lora_cache_max_adapter_size lora_cache_optimal_adapter_size "
        "max_batch_size max_num_tokens max_seq_len patch_kwargs request_default_max_tokens "
        "served_model_name tensor_parallel_size total_token_limit webserver_default_route"
    ),
    "trt_llm.version_overrides": (
        "bei_bert_version bei_version briton_version engine_builder_version v2_llm_version"
    ),
    "weights": "allow_patterns auth auth_secret_name ignore_patterns mount_location source",
    "weights.auth": (
        "auth_method auth_secret_name aws_assume_role_arn aws_assume_role_region aws_oidc_region "
        "aws_oidc_role_arn gcp_oidc_service_account gcp_oidc_workload_id_provider"
    ),
}
# What its parser takes besides.
ALSO = {"": {"hf_cache"}, "resources": {"use_gpu"}}

REQUIRED = ("server_port", "predict_endpoint", "readiness_endpoint", "liveness_endpoint")
PROXY_PORT = 8080  # of the nginx that Truss puts before a custom server

# Truss's names of GPUs, and those of `memory`: there an A100 has 80 GB, if it does not say 40.
GPUS = {
    "A100": "A100-80GB",
    "A100_40GB": "A100",
    "A10G": "A10G",
    "B200": "B200",
    "H100": "H100",
    "H200": "H200",
    "L4": "L4",
    "L40S": "L40S",
    "RTX_PRO_6000": "RTXPRO6000",
}
NO_BF16 = ("T4", "V100")  # before Ampere
NOT_KNOWN = ("B300", "GB300", "H100_40GB")  # no figure in `memory`
NUMBERS = {"one": 1, "two": 2, "four": 4, "eight": 8}


class _Unchecked(PixtralSkyError):
    """It could not be found out."""


class _Absent(PixtralSkyError):
    """There is nothing that could be checked."""


def examine(folder: Path) -> Iterator[Check]:
    """Check the Truss in that folder, one subject after another. Nothing that goes wrong in one is raised."""
    truss = _Truss(folder, {}, "")
    # The subject, its check, and the subject that it builds on.
    steps: tuple[tuple[str, Callable[[], str], str], ...] = (
        ("config.yaml", truss.read, ""),
        ("keys", truss.keys, "config.yaml"),
        ("server", truss.server, "config.yaml"),
        ("port", truss.port, "server"),
        ("weights", truss.weights, "server"),
        ("secret", truss.secret, "config.yaml"),
        ("GPU", truss.gpu, "server"),
        ("image", truss.image, "config.yaml"),
        ("README", truss.readme_agrees, "config.yaml"),
    )
    found: dict[str, State] = {"": "ok"}
    for subject, step, needs in steps:
        if found[needs] == "ok":
            check = _tried(subject, step)
        else:
            check = Check("unchecked", subject, f"not checked: {needs!r} comes first.")
        found[subject] = check.state
        yield check


def _tried(subject: str, step: Callable[[], str]) -> Check:
    result: State = "ok"
    hint = ""
    try:
        text = step()
    except PixtralSkyError as error:
        states: dict[type, State] = {_Unchecked: "unchecked", _Absent: "absent"}
        result, text, hint = states.get(type(error), "failed"), error.what, error.hint
    return Check(result, subject, text, hint)


@dataclass
class _Truss:
    """Each check is a method that returns what is well, and raises what is not."""

    folder: Path
    config: dict[str, Any]
    readme: str

    def read(self) -> str:
        path = self.folder / "config.yaml"
        if not path.is_file():
            raise UsageError(f"There is no {path}.", "It wants the folder of a Truss: --truss examples/truss")
        import yaml

        try:
            config = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, yaml.YAMLError, ValueError) as error:
            raise UsageError(f"{path} is not YAML: {' '.join(str(error).split())}.") from error
        if not isinstance(config, dict):
            raise UsageError(f"{path} is not the config.yaml of a Truss.")
        self.config = config
        readme = self.folder / "README.md"
        self.readme = readme.read_text(encoding="utf-8", errors="replace") if readme.is_file() else ""
        return f"{path}, as Truss {TRUSS} reads it"

    def keys(self) -> str:
        if wrong := list(_unknown(self.config, "")):
            raise PixtralSkyError(
                f"Truss knows no {', '.join(wrong)}.", "It builds all the same, as if they were not there."
            )
        return "Truss knows every one"

    def server(self) -> str:
        server = self.section("docker_server")
        if not server:
            raise PixtralSkyError("There is no docker_server.", "Without it, Truss runs a model/model.py.")
        missing = [key for key in REQUIRED if server.get(key) in (None, "")]
        if not server.get("start_command") and not server.get("no_build"):
            missing.insert(0, "start_command")
        if missing:
            raise PixtralSkyError(f"docker_server has no {', '.join(missing)}.")
        crooked = [key for key in REQUIRED[1:] if not str(server[key]).startswith("/")]
        if crooked:
            raise PixtralSkyError(f"docker_server.{crooked[0]} is no path.", "It begins with a slash.")
        return f"predict leads to {server['predict_endpoint']}"

    def port(self) -> str:
        port = self.section("docker_server").get("server_port")
        if not isinstance(port, int):
            raise PixtralSkyError(f"docker_server.server_port is {port!r}, and no number.")
        if port == PROXY_PORT:
            raise PixtralSkyError(
                f"server_port is {port}, where Truss's own proxy listens: the server would not start.",
                "Take another, in start_command as well: 8081",
            )
        if not self.command:
            raise _Unchecked(f"{port}, and there is no start_command to compare it with.")
        its = self.flag("port", r"(\d+)") or "8000"  # vLLM's default
        if int(its) != port:
            raise PixtralSkyError(
                f"start_command listens on {its}, and server_port is {port}.",
                f"Write --port {port}",
            )
        return f"{port} is vLLM's as well"

    def weights(self) -> str:
        weights, cache = self.items("weights"), self.items("model_cache") or self.items("hf_cache")
        if weights and cache:
            raise PixtralSkyError("There are weights and a model_cache.", "Truss takes one: weights")
        if not weights and not cache:
            raise _Absent("None are cached: each replica downloads them when it starts.")
        for each in weights:
            place = str(each.get("mount_location") or "")
            if self.command and place not in self.command:
                raise PixtralSkyError(
                    f"The weights are mounted at {place}, and start_command does not name that.",
                    "vLLM would download them a second time.",
                )
        places = [each.get("source") or each.get("repo_id") for each in weights or cache]
        return f"{', '.join(map(str, places))}, from Baseten's cache"

    def secret(self) -> str:
        declared = self.section("secrets")
        for name, value in declared.items():
            if value is not None:
                raise PixtralSkyError(f"The value of {name} is in the file.", f"Write {name}: null")
        for name, value in self.section("environment_variables").items():
            if value is None:
                raise PixtralSkyError(
                    f"environment_variables.{name} would be the text 'None'.",
                    "Is it a secret? Then it belongs to: secrets",
                )
        if missing := self.secrets_read() - set(declared):
            raise PixtralSkyError(
                f"start_command reads /secrets/{min(missing)}, which is not among the secrets.",
                f"Add to secrets: {min(missing)}: null",
            )
        used = self.secrets_used()
        if not used:
            raise PixtralSkyError(
                "No secret opens the licence gate of the weights.", "See examples/truss/config.yaml"
            )
        return f"{', '.join(sorted(used))}, whose value is not in the file"

    def gpu(self) -> str:
        resources = self.section("resources")
        if resources.get("instance_type"):
            raise _Unchecked(f"instance_type {resources['instance_type']} goes before resources.accelerator.")
        name, count = self.accelerator()
        if name in NOT_KNOWN:
            raise _Unchecked(f"It is not known here what {name} holds.")
        if name in NO_BF16:
            raise PixtralSkyError(f"{name} cannot compute in bf16.", "Take an A100, L40S or H100.")
        if name not in GPUS:
            raise PixtralSkyError(
                f"Truss knows no accelerator {name or 'at all'} here.", "resources.accelerator: A100"
            )
        split = int(self.flag("tensor-parallel-size", r"(\d+)") or self.flag("tp", r"(\d+)") or 1)
        if split != count:
            raise PixtralSkyError(
                f"resources.accelerator is {count} GPUs, and vLLM uses {split}.",
                f"Write --tensor-parallel-size {count}",
            )
        context = int(self.flag("max-model-len", r"(-?\d+)") or memory.MODEL_CONTEXT)
        images = int(self.flag("limit-mm-per-prompt", r"\W*image\W+(\d+)") or 1)
        precision = "fp8" if self.flag("quantization", r"(fp8_per_\w+)") else "bf16"
        try:
            found = memory.fits(GPUS[name], count, context, images, precision=precision)
        except ValueError as error:
            raise PixtralSkyError(f"start_command: {error}.") from None
        if not found.fits:
            # vLLM's own flag, in place of that of the commands here
            why = found.why_not.replace(
                "--precision fp8", f"--quantization {memory.quantization(GPUS[name])}"
            )
            raise PixtralSkyError(why, "What holds it: pixtral-sky plan --no-prices")
        return f"{name}:{count} holds it, with {found.context:,} tokens and {images} pictures a prompt"

    def image(self) -> str:
        image = str(self.section("base_image").get("image") or "")
        wanted = f"vllm/vllm-openai:v{task.load().vllm_version}"
        if not image:
            raise PixtralSkyError("There is no base_image.image.", f"Write {wanted}")
        if not image.startswith("vllm/vllm-openai:"):
            raise _Unchecked(f"{image} is not vLLM's own.")
        if image != wanted:
            raise PixtralSkyError(f"{image} is not the version of pixtral.yaml.", f"Write {wanted}")
        return image

    def readme_agrees(self) -> str:
        """What the README says of GPUs ("one A100", but not in tables), secrets and ports."""
        if not self.readme:
            raise _Absent("There is no README.md.")
        text = "\n".join(line for line in self.readme.splitlines() if not line.lstrip().startswith("|"))
        name, count = self.accelerator()
        gpus = "|".join(sorted((*GPUS, *NO_BF16, *NOT_KNOWN), key=len, reverse=True))
        said = re.findall(rf"\b((?i:{'|'.join(NUMBERS)})|[1248]) ?x? (?:NVIDIA )?({gpus})s?\b", text)
        asked = {f"{gpu}:{NUMBERS.get(number.lower(), number)}" for number, gpu in said}
        _agree("GPUs", asked, {f"{name}:{count}"})
        secrets = self.secrets_used() | set(self.section("secrets"))
        _agree("secrets", set(re.findall(r"\bhf_[a-z]+_(?:key|token)\b", text)), secrets)
        ports = re.findall(r"(?:\bport:?|localhost:|127\.0\.0\.1:) ?`?(\d{2,5})\b", text)
        port = str(self.section("docker_server").get("server_port"))
        _agree("ports", set(ports) - {str(PROXY_PORT)}, {port})
        return "what it says of the GPU, the secret and the port is so in config.yaml"

    @property
    def command(self) -> str:
        return str(self.section("docker_server").get("start_command") or "")

    def section(self, key: str) -> dict[str, Any]:
        found = self.config.get(key)
        return found if isinstance(found, dict) else {}

    def items(self, key: str) -> list[dict[str, Any]]:
        found = self.config.get(key)
        return [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []

    def flag(self, name: str, value: str) -> str:
        """What ``value`` catches after that flag of vLLM; empty without it. Raises for anything else."""
        spelled = name.replace("-", "[-_]")
        if not re.search(rf"(?<!\S)--?{spelled}\b", self.command):
            return ""
        if found := re.search(rf"(?<!\S)--?{spelled}[ =.]*{value}", self.command):
            return found[1]
        raise _Unchecked(f"start_command has a --{name} that says nothing here.")

    def accelerator(self) -> tuple[str, int]:
        """Truss's name of the GPU, and how many."""
        given = self.section("resources").get("accelerator")
        if isinstance(given, dict):
            given = f"{given.get('accelerator') or ''}:{given.get('count', 1)}"
        name, _, count = str(given or "").partition(":")
        return name, int(count) if count.isdecimal() else 1

    def secrets_read(self) -> set[str]:
        return set(re.findall(r"/secrets/([\w-]+)", self.command))

    def secrets_used(self) -> set[str]:
        """Those that open the weights, and those that start_command reads."""
        used: set[Any] = self.secrets_read()
        for each in self.items("weights"):
            auth = each.get("auth")
            used.add((auth if isinstance(auth, dict) else {}).get("auth_secret_name"))
            used.add(each.get("auth_secret_name"))
        for each in self.items("model_cache"):
            used.add(each.get("runtime_secret_name", "hf_access_token"))  # Truss's default
        return {str(each) for each in used if each}


def _agree(what: str, readme: set[str], config: set[str]) -> None:
    """Raises when the README names some, and others than config.yaml has."""
    if readme and readme != config:
        raise PixtralSkyError(
            f"README.md and config.yaml disagree about {what}: {', '.join(sorted(readme))}, "
            f"and {', '.join(sorted(config)) or 'none'}."
        )


def _unknown(value: Any, path: str) -> Iterator[str]:
    """The path of each key that Truss does not know, with the one that was meant."""
    if isinstance(value, list):
        for each in value:
            yield from _unknown(each, path)
    if not isinstance(value, dict) or path not in KEYS:
        return
    known = {*KEYS[path].split(), *ALSO.get(path, ())}
    for key, inner in value.items():
        here = f"{path}.{key}".lstrip(".")
        if key in known:
            yield from _unknown(inner, here)
        else:
            meant = difflib.get_close_matches(str(key), known, 1)
            yield f"{here} ({meant[0]}?)" if meant else here
