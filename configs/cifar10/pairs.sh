# Arguments of scripts.pairs for this data set: from the flow for reflow, and from the reflow for its distillation.
FLOW_PAIRS=(--count 1000000 --sampler heun --steps 25 --batch-size 1024)
REFLOW_PAIRS=(--count 1000000 --sampler heun --steps 4 --batch-size 1024)
