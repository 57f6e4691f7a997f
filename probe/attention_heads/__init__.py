"""What attention heads do: summaries on texts and on repeated random tokens, their kinds, and views of each as a kernel."""

from probe.attention_heads.recording import heads, plan_heads, run_heads
from probe.attention_heads.repeated import repeated_tokens
from probe.attention_heads.views import HeadView, LayerAttention

__all__ = ["HeadView", "LayerAttention", "heads", "plan_heads", "repeated_tokens", "run_heads"]
