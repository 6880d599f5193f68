"""Training steps by DeepSpeed, and the optimizer's state by parameter name.

The only module that imports deepspeed, and the only one that uses names outside of its public
API (`_hp_mapping`, `single_partition_of_fp32_groups`, `fp32_partitioned_groups_flat`,
`grad_position`). It is written for deepspeed 0.19.8; tests/distributed/test_engine.py fails
loudly when an upgrade moves them.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from app.checkpoint.fragments import Fragment, ParameterInfo
from app.config.schema.training import TrainingConfig
from app.distributed.groups import ProcessGroups
from app.distributed.rank_group import RankGroup
from app.training.deepspeed_section import deepspeed_section
from app.training.division import Division, nothing_divided
from app.training.ema import MovingAverage
from app.training.optimizer import ParameterGroup, make_optimizer, parameter_groups
from app.training.zero_partitions import MASTER, OwnedState, Read, Slot, balanced_owners

AGREE_EVERY = 100  # steps, and at every save


@dataclass(frozen=True, slots=True)
class StepReport:
    """One optimizer step. `grad_norm` is taken before clipping; NaN or inf when skipped."""

    grad_norm: float
    skipped: bool  # a gradient was NaN or infinite: nothing was changed


class Engine:
    """The network under DeepSpeed. Only the trained network is given to it, no encoder.

    One step is `accumulation` times `backward`, then `step`.
    """

    def __init__(
        self,
        deepspeed_engine: Any,
        optimizer: torch.optim.Optimizer,
        groups: list[ParameterGroup],
        division: Division,
        ema_largest_decay: float | None,
    ) -> None:
        self._engine = deepspeed_engine
        self._stage = int(deepspeed_engine.zero_optimization_stage())
        # Among the ranks that share the batch, not those that share the network.
        self._rank = dist.get_rank(deepspeed_engine.data_parallel_group)
        self._world_size = int(deepspeed_engine.dp_world_size)
        self._inner = optimizer
        self._groups = groups
        self._division = division
        slots = self._slots()
        masters = list({id(flat): flat for flat in self._flats()}.values())
        self.average = (
            None if ema_largest_decay is None else MovingAverage(masters, ema_largest_decay)
        )
        self._owned = OwnedState(slots, optimizer, self.average)
        self._steps = 0  # of this start

    @classmethod
    def start(
        cls,
        network: nn.Module,
        training: TrainingConfig,
        groups: ProcessGroups,
        axis_of: Callable[[str], int | None] = nothing_divided,
    ) -> Engine:
        """Put the network, on its device and with its trainable parameters chosen, under DeepSpeed.

        The network is cast to the training precision; fp32 master weights are kept as well.

        Args:
            network: where ranks share it (`groups.tensor`), this rank's part.
            training: precision, ZeRO stage, optimizer and batch sizes.
            groups: of this process.
            axis_of: name of a parameter -> the axis along which those ranks divide it; None:
                each has all of it.

        Raises:
            ConfigError: fp16 on a CPU, nothing trainable, an unknown optimizer.
        """
        on_cpu = groups.device.type == "cpu"
        section = deepspeed_section(training, world_size=groups.copies.size, on_cpu=on_cpu)
        division = Division.of(network, axis_of, groups.tensor)
        division.prepare(network)
        parameters = parameter_groups(network)
        optimizer = make_optimizer(parameters, training.optimizer, fused=not on_cpu)
        deepspeed = load_deepspeed(on_cpu=on_cpu)
        deepspeed.utils.groups.mpu = None  # of an engine that this process had before
        shares = groups.tensor.size > 1
        started, *_ = deepspeed.initialize(
            model=network,
            optimizer=optimizer,
            config=section,
            dist_init_required=False,
            mpu=_ModelParallelUnit(groups.tensor, groups.copies) if shares else None,
        )
        return cls(started, optimizer, parameters, division, training.optimizer.ema_decay)

    # training

    @property
    def network(self) -> Any:
        """The callable to train through: `network(latents, timesteps, conditioning)`."""
        return self._engine

    @property
    def at_boundary(self) -> bool:
        """True when the next `backward` is the last before `step`."""
        return bool(self._engine.is_gradient_accumulation_boundary())

    def train(self) -> None:
        self._engine.train()

    def eval(self) -> None:
        self._engine.eval()

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of one micro-batch; the mean over micro-batches is DeepSpeed's."""
        last = self.at_boundary
        self._engine.backward(loss)
        if not last:
            self._engine.step()  # counts the micro-step, changes nothing

    def step(self, lr: float) -> StepReport:
        """Clip and apply the accumulated gradients at learning rate `lr`.

        A gradient with a NaN or infinity leaves weights and moments as they were, on every rank.
        """
        assert self.at_boundary, "step() before all micro-batches of the step"
        for group in self._engine.optimizer.param_groups:
            group["lr"] = lr
        report = self._plain_step() if self._stage == 0 else self._zero_step()
        if self.average is not None and not report.skipped:
            self.average.update()
        self._steps += 1
        if self._steps % AGREE_EVERY == 0:
            self.agree()
        return report

    @torch.no_grad()
    def agree(self) -> None:
        """Make undivided parameters bitwise equal again on the ranks that share the network.

        Their gradients differ only by the order in which the copies are summed. Without this the
        difference would grow.
        """
        division = self._division
        if division.group.size == 1:
            return
        for slot in self._owned.slots:
            if division.axis_of(slot.name) is None:
                for _, tensor in self._owned.tensors(slot):
                    division.make_equal(slot.cut(tensor))
        for group in self._groups:
            for name, parameter in zip(group.names, group.parameters, strict=True):
                if division.axis_of(name) is not None:
                    continue
                division.make_equal(parameter.data)  # stage 3: empty, or a copy that stays
                if self._stage == 3:
                    division.make_equal(parameter.ds_tensor)  # type: ignore[attr-defined]

    def _zero_step(self) -> StepReport:
        self._engine.step()
        return StepReport(
            grad_norm=float(self._engine.get_global_grad_norm()),
            skipped=bool(self._engine.optimizer.overflow),
        )

    def _plain_step(self) -> StepReport:
        # Stage 0: the torch optimizer itself, which neither measures nor checks gradients.
        # They are already averaged over ranks, so every rank finds the same norm.
        norm = self._division.norm(
            {
                name: parameter.grad
                for group in self._groups
                for name, parameter in zip(group.names, group.parameters, strict=True)
                if parameter.grad is not None
            }
        )
        skipped = not torch.isfinite(torch.tensor(norm))
        if skipped:
            self._engine.zero_grad()
            self._engine.micro_steps += 1  # engine.step() would have counted it
        else:
            self._engine.step()
        return StepReport(grad_norm=norm, skipped=bool(skipped))

    # state

    def fragments(self) -> Iterator[Fragment]:
        """What this rank saves: its pieces of master weights, moments and averages, on the CPU.

        Call right after `step`: between micro-batches gradients would be lost. Ranks that share
        the network exchange pieces meanwhile: all of them must read to the end.
        """
        self.agree()
        if self._stage:
            return self._division.whole_fragments(self._owned.fragments())
        sizes = {slot.name: slot.numel for slot in self._owned.slots}
        owner = balanced_owners(sizes, self._world_size)  # every rank holds all of it
        mine = self._owned.fragments(lambda name: owner[name] == self._rank)
        return self._division.whole_fragments(mine)

    def parameters_info(self) -> dict[str, ParameterInfo]:
        """Shape and group of every trained parameter, by name."""
        return {
            name: ParameterInfo(shape=self._division.whole_shape(name), group=index)
            for index, group in enumerate(self._groups)
            for name in group.names
        }

    def adam_steps(self) -> dict[str, int]:
        """Adam's own count of steps, by number of the parameter group."""
        return self._owned.adam_steps()

    def loss_scale(self) -> dict[str, float] | None:
        """State of fp16's dynamic loss scale; None in the other precisions."""
        scaler = getattr(self._engine.optimizer, "loss_scaler", None)
        if not self._engine.fp16_enabled() or scaler is None:
            return None
        names = ("cur_scale", "cur_iter", "last_overflow_iter")
        return {name: float(getattr(scaler, name)) for name in names if hasattr(scaler, name)}

    @torch.no_grad()
    def restore(
        self,
        read: Read,
        adam_steps: Mapping[str, int],
        *,
        ema_updates: int | None = None,
        loss_scale: Mapping[str, float] | None = None,
    ) -> None:
        """Fill weights, moments and averages from a checkpoint written at any layout.

        Args:
            read: (name, kind, start, numel) -> flat fp32 values.
            adam_steps: as `adam_steps()` gave them.
            ema_updates: `average.updates` at the save; None: the averages start again.
            loss_scale: as `loss_scale()` gave it.
        """
        read = self._division.reader(read)
        self._owned.fill(read, adam_steps, ema_updates)
        for group in self._groups:
            for name, parameter in zip(group.names, group.parameters, strict=True):
                if self._stage == 3:
                    self._fill_partitioned(name, parameter, read)
                elif self._stage:
                    # Casts to the training precision; the flat buffer shares this storage.
                    values = read(name, MASTER, 0, parameter.numel())
                    parameter.data.copy_(values.view(parameter.shape))
        for name, value in (loss_scale or {}).items():
            kind = float if name == "cur_scale" else int
            setattr(self._engine.optimizer.loss_scaler, name, kind(value))

    def _fill_partitioned(self, name: str, parameter: nn.Parameter, read: Read) -> None:
        partition = parameter.ds_tensor  # type: ignore[attr-defined]
        numel = int(parameter.ds_numel)  # type: ignore[attr-defined]
        start = partition.numel() * self._rank
        valid = max(0, min(partition.numel(), numel - start))
        if valid:
            partition.view(-1)[:valid].copy_(read(name, MASTER, start, valid))
        if parameter.data.numel() == numel:
            # A small parameter that stays gathered: the next forward reads this copy.
            whole = read(name, MASTER, 0, numel)
            parameter.data.copy_(whole.view(parameter.shape))

    # where DeepSpeed keeps the optimizer's state

    def _flats(self) -> list[Tensor]:
        """The fp32 tensors that the torch optimizer steps."""
        optimizer = self._engine.optimizer
        if self._stage == 0:
            return [p for group in self._groups for p in group.parameters]
        if self._stage == 3:
            return list(optimizer.fp32_partitioned_groups_flat)
        return list(optimizer.single_partition_of_fp32_groups)

    def _slots(self) -> list[Slot]:
        make = {0: self._whole_slot, 3: self._partition_slot}.get(self._stage, self._piece_slot)
        found = [
            make(name, index, parameter)
            for index, group in enumerate(self._groups)
            for name, parameter in zip(group.names, group.parameters, strict=True)
        ]
        return [slot for slot in found if slot is not None and slot.numel > 0]

    def _whole_slot(self, name: str, group: int, parameter: nn.Parameter) -> Slot | None:
        return Slot(name, group, parameter, 0, 0, parameter.numel())

    def _piece_slot(self, name: str, group: int, parameter: nn.Parameter) -> Slot | None:
        """Stages 1 and 2: one flat partition per group, cut anywhere."""
        mapping = parameter._hp_mapping  # type: ignore[attr-defined]
        if mapping is None:
            return None  # this rank owns nothing of it
        flat = self._engine.optimizer.single_partition_of_fp32_groups[mapping.param_group_index]
        inside, piece = mapping.get_hp_fragment_address(), mapping.lp_fragment_address
        return Slot(name, group, flat, inside.start, piece.start, piece.numel)

    def _partition_slot(self, name: str, group: int, parameter: nn.Parameter) -> Slot | None:
        """Stage 3: every parameter cut in equal parts, the last ones padded."""
        optimizer = self._engine.optimizer
        part = int(parameter.ds_tensor.numel())  # type: ignore[attr-defined]
        start = part * self._rank
        index, offset, _ = optimizer.grad_position[optimizer.get_param_id(parameter)]
        flat = optimizer.fp32_partitioned_groups_flat[index]
        valid = int(parameter.ds_numel) - start  # type: ignore[attr-defined]
        return Slot(name, group, flat, int(offset), start, min(part, valid))


class _ModelParallelUnit:
    """Which ranks share the network and which the batch, under the names that DeepSpeed calls."""

    def __init__(self, tensor: RankGroup, data: RankGroup) -> None:
        self.get_model_parallel_group = lambda: tensor.handle
        self.get_model_parallel_rank = lambda: tensor.rank
        self.get_model_parallel_world_size = lambda: tensor.size
        self.get_data_parallel_group = lambda: data.handle
        self.get_data_parallel_rank = lambda: data.rank
        self.get_data_parallel_world_size = lambda: data.size


def prepare_process(*, on_cpu: bool, compiles: bool = False) -> None:
    """Set what DeepSpeed reads when it is imported; transformers imports it too, so call early.

    Args:
        on_cpu: no GPU is used.
        compiles: compiled blocks are requested (`model.compile_model`).
    """
    if on_cpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        # The import itself starts torch.compile unless it is off, which takes seconds and, at the
        # first call, a C++ compiler.
        os.environ.setdefault("TORCHDYNAMO_DISABLE", "0" if compiles else "1")


def load_deepspeed(*, on_cpu: bool) -> ModuleType:
    """Import DeepSpeed and bind it to the running process group, without compiling anything."""
    prepare_process(on_cpu=on_cpu)
    import deepspeed

    if on_cpu:
        # Else init_distributed compiles this op with g++ for a minute; gloo serves as well.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    # It uses names that torch deprecates; a user cannot fix that.
    warnings.filterwarnings("ignore", r"`torch\.distributed\.", FutureWarning)
    logger = logging.getLogger("DeepSpeed")
    logger.handlers.clear()  # its own handler prints to stdout
    logger.propagate = True
    logger.setLevel(logging.WARNING)
    backend = "gloo" if on_cpu else "nccl"
    deepspeed.init_distributed(backend, auto_mpi_discovery=False, verbose=False)
    return deepspeed
