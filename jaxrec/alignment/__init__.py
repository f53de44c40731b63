"""Alignment: reward models, rollouts, and the stages that move a generator by preferences."""
