"""The vLLM engine: vLLM schedules, caches and computes; what is drawn from its logits is ours.

vLLM runs in this process and is stepped by the engine's thread (``LLMEngine``, the twin of its async engine over the
same core): there is no second process that could be orphaned, hang unseen, or need the tokens over a socket once more.
It loads the model itself. Everything that it offers as an engine argument is an option here, but for what the pool
decides.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import torch

from samplerpool.config.adapters import adapter_plan
from samplerpool.config.arguments import EngineConfig
from samplerpool.config.sampling import BASE_ADAPTER
from samplerpool.engine.base import EngineStats, StepOutput
from samplerpool.engine.hosted import HostedEngine, Live, RequestSettings
from samplerpool.engine.row_sampler import RowSampler
from samplerpool.engine.vllm_arguments import check_installed, check_model_arguments, engine_arguments
from samplerpool.errors import EngineError, StartFailed
from samplerpool.model.adapters import folder_of
from samplerpool.model.failures import failure_line
from samplerpool.model.model_engine import ModelEngine

if TYPE_CHECKING:
    from vllm import LLMEngine

IDLE_S = 0.002
"""Between two looks at requests that vLLM has no room for."""
REASON_CHARS = 300


class VllmEngine(HostedEngine):
    """See the module's docstring.

    Args:
        checkpoint: what is known of the model without its weights; adapters that are not merged are loaded as well.
        config: ``max_batch``, ``max_model_len`` and as options ``cache_gib`` and vLLM's engine arguments, by the names
            of its ``EngineArgs`` (``gpu_memory_utilization``, ``quantization``, ``enforce_eager``, ...).

    Raises:
        StartFailed: vLLM is not installed, is built for another device, or cannot run the model.
        InvalidParameter: an option that does not exist, or an argument that vLLM has no use for.
    """

    name = "vllm"

    def __init__(self, checkpoint: ModelEngine, config: EngineConfig) -> None:
        check_model_arguments(checkpoint.model_args)
        plan = adapter_plan(checkpoint.model_args.peft_config)
        folders = {name: folder_of(path) for name, path in plan.attached.items()}
        check_installed(config.device)
        from vllm import EngineArgs, LLMEngine
        from vllm.lora.request import LoRARequest

        from samplerpool.engine.vllm_drawing import Passes, drawing

        eos_token_ids = checkpoint.renderer.codec.eos_token_ids
        sampler = RowSampler(checkpoint.model_config.get_text_config().vocab_size, eos_token_ids, config.device)
        self._passes = Passes()
        self._dead: str | None = None
        arguments = engine_arguments(checkpoint, config, list(folders.values()))
        self._loras = {name: LoRARequest(name, at, str(path)) for at, (name, path) in enumerate(folders.items(), 1)}
        self._engine: LLMEngine | None = None
        try:
            args = EngineArgs(**arguments, logits_processors=[drawing(sampler, self._passes)])
            self._engine = LLMEngine.from_engine_args(args)
            for lora in self._loras.values():
                self._engine.add_lora(lora)
        except Exception as error:  # whatever vLLM, a checkpoint's own code or the device raise
            self._shut_down()
            raise StartFailed(f"vLLM cannot run this model: {_reason(error)}.", reason=failure_line(error)) from error
        super().__init__(
            sampler, max_batch=config.max_batch, max_model_len=self._engine.vllm_config.model_config.max_model_len
        )
        self.adapters, self.adapter = tuple(self._loras), plan.active or BASE_ADAPTER

    def step(self) -> list[StepOutput]:
        """One step of vLLM's: a token for each running request, or a part of a long prompt.

        Raises:
            EngineError: vLLM has failed; all requests have, and so will those that come.
        """
        if self._engine is None or self._dead:
            self._drop_all()
            raise EngineError(f"vLLM has died ({self._dead or 'closed'}). Its worker must be started again.")
        outputs, self._ready = self._ready, []
        before = self._passes.count
        try:
            results = self._engine.step() if self._running else []
        except Exception as error:
            self._dead = f"{type(error).__name__}: {failure_line(error)}"
            self._drop_all()
            raise EngineError(
                f"vLLM has died ({self._dead}). Its worker must be started again.", reason=self._dead
            ) from error
        for result in results:
            outputs += self._outputs_of(result)
        if not outputs and self._passes.count == before:
            time.sleep(IDLE_S)
        self._admit()
        return outputs

    def _outputs_of(self, result: Any) -> list[StepOutput]:
        live = self._running.get(result.request_id)
        if live is None:
            return []
        (completion,) = result.outputs
        outputs = self._gained(live, completion.token_ids)
        if result.finished and live.key in self._running:
            outputs.append(self._failed(live, EngineError(f"vLLM ended the request: {completion.finish_reason}.")))
        return outputs

    def _hand_over(self, live: Live, prompt_ids: list[int], new_tokens: int) -> None:
        from vllm import SamplingParams
        from vllm.inputs import tokens_input
        from vllm.sampling_params import RequestOutputKind

        from samplerpool.engine.vllm_drawing import SETTINGS_KEY

        if self._engine is None:
            return
        request = live.request
        live.settings = RequestSettings.of(request.params, len(request.prompt_ids), prompt_ids)
        params = SamplingParams(
            temperature=0.0,
            max_tokens=new_tokens,
            stop_token_ids=sorted(token_id for token_id in live.end_ids if token_id < self.vocab_size),
            ignore_eos=True,  # those that count are among the ones above
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
            extra_args={SETTINGS_KEY: live.settings},
        )
        lora = self._loras.get(request.params.adapter or BASE_ADAPTER)
        try:
            self._engine.add_request(
                live.key, tokens_input(prompt_ids), params, lora_request=lora, priority=request.priority
            )
        except Exception as error:  # it has checks of its own, beside ours
            failure = EngineError(f"vLLM did not take the request: {failure_line(error)}.")
            self._ready.append(self._failed(live, failure))

    def _take_back(self, live: Live) -> None:
        if self._engine is not None:
            self._engine.abort_request([live.key])

    @property
    def steps(self) -> int:
        """Forward passes."""
        return self._passes.count

    def stats(self) -> EngineStats:
        """Requests inside of vLLM and before it."""
        from vllm import __version__

        return EngineStats(len(self._running), self._queued, {"picked": f"it was asked for; vLLM {__version__}"})

    def close(self) -> None:
        """End vLLM's work and free its memory. Idempotent."""
        self._drop_all()
        if self._engine is not None:
            self._shut_down()

    def _shut_down(self) -> None:
        """What ``close`` is for, also after a start that came half the way."""
        from vllm.distributed import cleanup_dist_env_and_memory

        engine, self._engine = self._engine, None
        if engine is not None:
            engine.engine_core.shutdown()
        cleanup_dist_env_and_memory()


def _reason(error: Exception) -> str:
    line = failure_line(error)
    if isinstance(error, torch.OutOfMemoryError):
        return (
            f"it does not fit into the device's memory ({line}). Give it a shorter --max-model-len, or see vLLM's "
            "gpu_memory_utilization."
        )
    if callable(errors := getattr(error, "errors", None)):  # pydantic's, whose first line only counts them
        return "; ".join(": ".join(map(str, (*each["loc"], each["msg"]))) for each in errors())[:REASON_CHARS]
    return f"{type(error).__name__}: {line}" if isinstance(error, KeyError | AttributeError | TypeError) else line
