"""The methods: a row of METHODS names the module of a method and its `Method` there.

No other module of `src` needs a row; tests and docs do, see CONTRIBUTING.
"""

from __future__ import annotations

from collections.abc import Mapping

# Names instead of objects, so that help lists the methods without torch.
METHODS: Mapping[str, str] = {
    "adaptformer": "bottlenecks:ADAPTFORMER",
    "bitfit": "subsets:BITFIT",
    "convpass": "bottlenecks:CONVPASS",
    "difffit": "scales:DIFFFIT",
    "fact-tk": "fact:FACT_TK",
    "fact-tt": "fact:FACT_TT",
    "full": "subsets:FULL",
    "houlsby": "bottlenecks:HOULSBY",
    "layernorm": "subsets:LAYERNORM",
    "linear": "subsets:LINEAR",
    "lora": "lora:LORA",
    "pfeiffer": "bottlenecks:PFEIFFER",
    "repadapter": "bottlenecks:REPADAPTER",
    "ssf": "scales:SSF",
    "subset": "subsets:SUBSET",
    "vpt-deep": "vpt:VPT_DEEP",
    "vpt-shallow": "vpt:VPT_SHALLOW",
}
