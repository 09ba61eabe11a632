"""The paper's own protocol: LPIPS, CLIP score and CLIP directional similarity over a list of pairs of prompts."""
