# Arguments of scripts.pairs for this data set: from the flow for reflow, and from the reflow for its distillation.
FLOW_PAIRS=(--count 20480 --sampler heun --steps 12)
REFLOW_PAIRS=(--count 20480 --sampler heun --steps 8)
