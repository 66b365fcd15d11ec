"""Detectors with random weights, small enough for tests, in the layout of the published folders: ``build(family, …)``.

``tiny`` has OWL-ViT, OWLv2 and RT-DETR; here are the others, by the model_type of their ``config.json``.
"""

from pathlib import Path

import tiny
import torch
import transformers

# the first as DETR's, a number that stands for nothing; some as RT-DETR spells them
LABELS = dict(enumerate(["N/A", "person", "dog", "cat", "tvmonitor", "sofa", "pottedplant", "bed"]))
D = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
HEADS = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
EDGES = {"shortest_edge": 48, "longest_edge": 80}


def build(family: str, folder: str | Path, seed: int = 0, full: bool = False) -> Path:
    """A folder of a family's model and processor; ``full``: Grounding DINO of its published size."""
    if hasattr(tiny, family):
        return getattr(tiny, family)(folder, seed=seed)
    torch.manual_seed(seed)
    model, processor = _grounding_dino(full=True) if full else BUILDERS[family]()
    with torch.no_grad():  # scores and boxes that differ from one another
        for name, weights in model.named_parameters():
            if weights.ndim > 1:
                large = any(part in name for part in ("class", "quer", "detection_tokens", "enc_score"))
                gain = 3.0 if large else 1.0
                weights.normal_(0, gain * (weights.numel() / len(weights)) ** -0.5)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return Path(folder)


def _named(config: type, **options) -> transformers.PretrainedConfig:
    return config(id2label=LABELS, label2id={label: i for i, label in LABELS.items()}, **options)


def _resnet(*stages: str) -> transformers.ResNetConfig:
    return transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8, 16, 16], depths=[1] * 4, layer_type="basic", out_features=list(stages)
    )


def _edges(kind: str, **size):
    return getattr(transformers, f"{kind}ImageProcessorPil")(size=size or EDGES)


def _rt(kind: str):
    backbone = {"RTDetrV2": "RTDetrResNetConfig", "DFine": "HGNetV2Config"}[kind]
    features = {"out_features": ["stage2", "stage3", "stage4"]}
    sizes = {"embedding_size": 8, "hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "layer_type": "basic"}
    if kind == "DFine":
        sizes = {
            "stem_channels": [3, 8, 8], "stage_in_channels": [8, 8, 16, 16], "stage_mid_channels": [8] * 4,
            "stage_out_channels": [8, 16, 16, 16], "stage_num_blocks": [1] * 4, "stage_numb_of_layers": [1] * 4,
            "embedding_size": 8, "hidden_sizes": [8, 16, 16, 16], "depths": [1, 1, 1, 1],
        }  # fmt: skip
    channels = sizes["hidden_sizes"][1:]
    config = _named(
        getattr(transformers, f"{kind}Config"), backbone_config=getattr(transformers, backbone)(**sizes, **features),
        d_model=32, encoder_hidden_dim=32, encoder_in_channels=channels, feat_strides=[8, 16, 32], encoder_ffn_dim=16,
        encoder_attention_heads=2, decoder_in_channels=[32, 32, 32], decoder_ffn_dim=16, decoder_attention_heads=2,
        decoder_layers=2, num_queries=20, num_denoising=0,
    )  # fmt: skip
    processor = transformers.RTDetrImageProcessorPil(size={"height": 64, "width": 64})
    return getattr(transformers, f"{kind}ForObjectDetection")(config), processor


def _detr(kind: str, **more):
    stages = ("stage2", "stage3", "stage4") if kind == "DeformableDetr" else ("stage4",)
    options = {"use_timm_backbone": False, "backbone": None, "use_pretrained_backbone": False}
    config = _named(
        getattr(transformers, f"{kind}Config"), backbone_config=_resnet(*stages), num_queries=20, **D, **HEADS,
        **options, **more,
    )  # fmt: skip
    return getattr(transformers, f"{kind}ForObjectDetection")(config), _edges(kind)


def _yolos():
    config = _named(transformers.YolosConfig, **tiny.SIZES, image_size=[48, 80], patch_size=16, num_detection_tokens=20)
    return transformers.YolosForObjectDetection(config), _edges("Yolos")


def _lw_detr():
    backbone = transformers.LwDetrViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=64, pretrain_image_size=64,
        patch_size=16, window_block_indices=[0], out_indices=[1], num_windows=4, mlp_ratio=2,
    )  # fmt: skip
    config = _named(
        transformers.LwDetrConfig, backbone_config=backbone, d_model=32, decoder_ffn_dim=16, decoder_layers=2,
        decoder_self_attention_heads=2, decoder_cross_attention_heads=2, num_queries=10, group_detr=2,
        projector_scale_factors=[1.0],
    )  # fmt: skip
    return transformers.LwDetrForObjectDetection(config), _edges("DeformableDetr", height=64, width=64)


def _rf_detr():
    backbone = transformers.RfDetrDinov2Config(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=64, patch_size=16, num_windows=1,
        out_features=["stage2"],
    )  # fmt: skip
    config = _named(
        transformers.RfDetrConfig, backbone_config=backbone, d_model=32, decoder_ffn_dim=16, decoder_layers=2,
        decoder_self_attention_heads=2, decoder_cross_attention_heads=2, num_queries=10, group_detr=2,
    )  # fmt: skip
    processor = transformers.RfDetrImageProcessor(size={"height": 64, "width": 64})
    return transformers.RfDetrForObjectDetection(config), processor


def _mask2former():
    swin = transformers.SwinConfig(
        image_size=32, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=2,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip
    config = _named(
        transformers.Mask2FormerConfig, backbone_config=swin, feature_size=32, mask_feature_size=32, hidden_dim=32,
        encoder_feedforward_dim=16, dim_feedforward=16, encoder_layers=1, decoder_layers=2, num_attention_heads=2,
        num_queries=40,
    )  # fmt: skip
    processor = _edges("Mask2Former", shortest_edge=64, longest_edge=96)
    return transformers.Mask2FormerForUniversalSegmentation(config), processor


def bert_tokenizer() -> transformers.BertTokenizer:
    """A BERT tokenizer whose special tokens and full stop have the numbers of the published one, which Grounding DINO's
    code names."""
    vocabulary = {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, "[MASK]": 103, ".": 1012, "?": 1029}
    letters = [chr(code) for code in range(97, 123)]
    words = [word for word in tiny.WORDS if len(word) > 1 and not word.startswith("o")]  # the others are spelt out
    free = (i for i in range(1, 2000) if i not in vocabulary.values())
    vocabulary |= zip([*letters, *(f"##{letter}" for letter in letters), *words], free, strict=False)
    vocabulary |= {f"[unused{i}]": i for i in range(1030) if i not in set(vocabulary.values())}
    by_number = dict(sorted(vocabulary.items(), key=lambda item: item[1]))
    return transformers.BertTokenizer(vocab=by_number, model_max_length=512)


def _grounding_dino(kind: str = "GroundingDino", full: bool = False):
    tokens, stages = bert_tokenizer(), ["stage2", "stage3", "stage4"]
    if full:  # the configurations' defaults are the published sizes
        config = transformers.GroundingDinoConfig(backbone_config=transformers.SwinConfig(out_features=stages))
        processor = transformers.GroundingDinoProcessor(transformers.GroundingDinoImageProcessorPil(), tokens)
        return transformers.GroundingDinoForObjectDetection(config), processor
    swin = transformers.SwinConfig(
        image_size=32, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=2, out_features=stages
    )
    text = transformers.BertConfig(**tiny.SIZES, vocab_size=1100, max_position_embeddings=512)
    config = getattr(transformers, f"{kind}Config")(
        backbone_config=swin, text_config=text, num_queries=20, **D, **HEADS, num_feature_levels=3,
    )  # fmt: skip
    processor = transformers.GroundingDinoProcessor(_edges("GroundingDino", shortest_edge=64, longest_edge=96), tokens)
    return getattr(transformers, f"{kind}ForObjectDetection")(config), processor


BUILDERS = {
    "rt_detr_v2": lambda: _rt("RTDetrV2"),
    "d_fine": lambda: _rt("DFine"),
    "detr": lambda: _detr("Detr"),
    "conditional_detr": lambda: _detr("ConditionalDetr"),
    "deformable_detr": lambda: _detr("DeformableDetr", num_feature_levels=3),
    "yolos": _yolos,
    "lw_detr": _lw_detr,
    "rf_detr": _rf_detr,
    "mask2former": _mask2former,
    "grounding-dino": _grounding_dino,
    "mm-grounding-dino": lambda: _grounding_dino("MMGroundingDino"),
}
