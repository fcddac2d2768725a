"""Flows: rectified flow, the couplings of reflow, and distillation of a flow."""
