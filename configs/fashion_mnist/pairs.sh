# Arguments of scripts.pairs for this data set: from the flow for reflow, and from the reflow for its distillation.
FLOW_PAIRS=(--count 24576 --sampler heun --steps 8)
REFLOW_PAIRS=(--count 24576 --sampler heun --steps 4)
