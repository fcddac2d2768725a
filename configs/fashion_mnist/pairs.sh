# Arguments of scripts.pairs for this data set: from the flow for reflow, and from the reflow for its distillation.
FLOW_PAIRS=(--count 65536 --sampler heun --steps 10)
REFLOW_PAIRS=(--count 65536 --sampler heun --steps 5)
