"""Optimisers and learning rate schedules of a phase."""

from __future__ import annotations

import math

import keras
import tensorflow as tf

from transfer.config import PhaseConfig


class PhaseSchedule(keras.optimizers.schedules.LearningRateSchedule):
    """Linear warm-up, then constant, cosine (Loshchilov & Hutter, 2017) or exponential decay, in steps.

    The learning rate depends on the step only, so a resumed optimiser continues the schedule.
    """

    def __init__(
        self,
        *,
        peak: float | tf.Variable | tf.Tensor,
        kind: str,
        warmup_steps: int,
        total_steps: int,
        final_share: float,
    ) -> None:
        self.peak = peak
        self.kind = kind
        self.warmup_steps = warmup_steps
        self.total_steps = total_steps
        self.final_share = final_share

    def __call__(self, step: tf.Tensor) -> tf.Tensor:
        """The learning rate, float32 of the shape of `peak`, of step `step`, which counts from 0 within the phase."""
        done = tf.cast(step, tf.float32)
        decay_steps = max(self.total_steps - self.warmup_steps, 1)
        progress = tf.clip_by_value((done - self.warmup_steps) / decay_steps, 0.0, 1.0)
        if self.kind == "cosine":
            share = self.final_share + (1.0 - self.final_share) * 0.5 * (1.0 + tf.cos(math.pi * progress))
        elif self.kind == "exponential":
            share = tf.pow(self.final_share, progress)
        else:
            share = tf.ones_like(progress)
        # The first step has the rate peak / warmup_steps: a step with rate zero would learn nothing.
        warmup = tf.minimum((done + 1.0) / max(self.warmup_steps, 1), 1.0)
        return self.peak * share * warmup

    def get_config(self) -> dict[str, object]:
        """The schedule's configuration as Keras stores it."""
        return dict(vars(self))


def build_optimizer(
    phase: PhaseConfig,
    *,
    learning_rate: tf.Variable | tf.Tensor,
    weight_decay: tf.Tensor | None = None,
    steps_per_epoch: int,
    loss_scaling: bool = False,
) -> keras.optimizers.Optimizer:
    """The phase's optimiser.

    `learning_rate`: the peak, a float32 scalar. `weight_decay`: None is the phase's own. Keras uses both of them
    element by element. So if their shape is [trials, 1, 1], one optimiser updates variables [trials, …, …] as separate
    optimisers would update the slices.

    The step clips gradients, not the optimiser, because only the step has the sum over all replicas.
    """
    schedule = PhaseSchedule(
        peak=learning_rate,
        kind=phase.schedule.kind,
        warmup_steps=round(phase.schedule.warmup_epochs * steps_per_epoch),
        total_steps=phase.epochs * steps_per_epoch,
        final_share=phase.schedule.final_share,
    )
    chosen = phase.optimizer
    if chosen.name == "sgd":
        optimizer = keras.optimizers.SGD(schedule, momentum=chosen.momentum, nesterov=chosen.nesterov)
    elif chosen.name == "adamw":
        decay = chosen.weight_decay if weight_decay is None else weight_decay
        optimizer = keras.optimizers.AdamW(schedule, weight_decay=decay)
    else:
        optimizer = keras.optimizers.Adam(schedule)
    # float16 gradients underflow without loss scaling; bfloat16 has float32's range and needs none.
    return keras.optimizers.LossScaleOptimizer(optimizer) if loss_scaling else optimizer
