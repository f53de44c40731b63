"""Public sets of Amazon reviews: the releases of 2014, 2018, 2023, and what others made of them.

Addresses were seen in public sources, which the comments name. Files of git repositories are pinned
to a commit and checked against the name that git gives their content.
"""

from __future__ import annotations

from jaxrec.data.public_set import PublicFile, PublicSet, files_of_commit

_NO_LICENCE = "none stated by the publisher; cite the paper, and see the home page"


def _amazon(release: int, category: str, *pair: PublicFile, citation: str, home: str) -> PublicSet:
    reviews, metadata = pair
    return PublicSet(
        name=f"amazon{release}-{category.lower().replace('_', '-')}",
        title=f"Amazon reviews of {release}: {category.replace('_', ' ')}",
        licence=_NO_LICENCE,
        citation=citation,
        homepage=home,
        format="amazon",
        path=reviews.name,
        flags=("--metadata", f"{{folder}}/{metadata.name}"),
        files=pair,
        family=f"amazon{release}",
    )


def _amazon_2014(category: str) -> PublicSet:
    # Seen category by category in public download scripts: Beauty, Sports and Toys as one list of
    # six addresses in a reproduction of TIGER, the others in pairs elsewhere. No checksum seen.
    base = "https://snap.stanford.edu/data/amazon/productGraph/categoryFiles"
    names = (f"reviews_{category}_5.json.gz", f"meta_{category}.json.gz")
    return _amazon(
        *(2014, category, *(PublicFile(f"{base}/{name}", name) for name in names)),
        citation=(
            "McAuley et al. Image-based Recommendations on Styles and Substitutes. SIGIR 2015."
        ),
        home="https://cseweb.ucsd.edu/~jmcauley/datasets/amazon/links.html",
    )


def _amazon_2018(category: str) -> PublicSet:
    # The lab's own host; both patterns and each category seen in public download scripts, first of
    # all for the categories of MiniOneRec (Industrial, Office). No checksum seen.
    base = "https://mcauleylab.ucsd.edu/public_datasets/data/amazon_v2"
    files = (
        PublicFile(f"{base}/categoryFilesSmall/{category}_5.json.gz", f"{category}_5.json.gz"),
        PublicFile(f"{base}/metaFiles2/meta_{category}.json.gz", f"meta_{category}.json.gz"),
    )
    return _amazon(
        *(2018, category, *files),
        citation=(
            "Ni, Li, McAuley. Justifying Recommendations using Distantly-Labeled Reviews and "
            "Fine-Grained Aspects. EMNLP 2019."
        ),
        home="https://cseweb.ucsd.edu/~jmcauley/datasets/amazon_v2/",
    )


def _amazon_2023(category: str) -> PublicSet:
    # The table of amazon-reviews-2023.github.io lists both files of each category; its host moved
    # from datarepo.eng.ucsd.edu/mcauley_group to this one, under the same path.
    base = "https://mcauleylab.ucsd.edu/public_datasets/data/amazon_2023/raw"
    sums = _SHA256_2023.get(category, (None, None))
    places = (f"review_categories/{category}", f"meta_categories/meta_{category}")
    files = (
        PublicFile(f"{base}/{place}.jsonl.gz", f"{place.split('/')[1]}.jsonl.gz", sha256=sha256)
        for place, sha256 in zip(places, sums)
    )
    return _amazon(
        *(2023, category, *files),
        citation="Hou et al. Bridging Language and Items for Retrieval and Recommendation. 2024. "
        "arXiv:2403.03952",
        home="https://amazon-reviews-2023.github.io/",
    )


# Recorded by two public projects in July 2026.
_SHA256_2023 = {
    "All_Beauty": (
        "ee00e66835567c3f12fde6a482f8d7055c22cac2d0924f677263affdd8a0e349",
        "51f8255c2794afd60e274c10d3e2d09dc1f671eba4ba35f74f748d8631216d05",
    ),
}
_CATEGORIES_2014 = """
    Beauty Clothing_Shoes_and_Jewelry Digital_Music Electronics Office_Products Sports_and_Outdoors
    Toys_and_Games Video_Games
"""
_CATEGORIES_2018 = """
    Arts_Crafts_and_Sewing Electronics Industrial_and_Scientific Musical_Instruments
    Office_Products Sports_and_Outdoors Toys_and_Games Video_Games
"""
_CATEGORIES_2023 = """
    All_Beauty Amazon_Fashion Appliances Arts_Crafts_and_Sewing Automotive Baby_Products
    Beauty_and_Personal_Care Books CDs_and_Vinyl Cell_Phones_and_Accessories
    Clothing_Shoes_and_Jewelry Digital_Music Electronics Gift_Cards Grocery_and_Gourmet_Food
    Handmade_Products Health_and_Household Health_and_Personal_Care Home_and_Kitchen
    Industrial_and_Scientific Kindle_Store Magazine_Subscriptions Movies_and_TV Musical_Instruments
    Office_Products Patio_Lawn_and_Garden Pet_Supplies Software Sports_and_Outdoors
    Subscription_Boxes Tools_and_Home_Improvement Toys_and_Games Video_Games
"""

# The tree of the commit; the README names the Amazon release and the categories. Of the train
# tables the tree gives the name of the content, which is a checksum, but no size was seen.
_MINIONEREC_COMMIT = "81b4ba9811cfb152cf161f1c486fe516510d081e"
_MINIONEREC = {
    "Industrial_and_Scientific": (
        ("train", None, "c35e3af957d20844b5475973db71c24f769c54ef"),
        ("valid", 2_915_875, "bfb8211bd85d1c0f20f7e6764bd114ca27e75053"),
        ("test", 3_105_687, "ed3707f99446c2d09216431c209e123f929966af"),
        ("item", 3_008_778, "f93d3f2746c1be07086770a00f5e8cfc1d03d1fb"),
        ("index", 152_189, "58d4cfc25fec4b8d362600675b576927ed982747"),
    ),
    "Office_Products": (
        ("train", None, "a9b4781fc41c41358981df034662d3cf3ccb6f90"),
        ("valid", 3_038_060, "7414627f0c8257e0731a8f2b08a8c82d6ccdfa18"),
        ("test", 3_310_265, "0e999901eed118aabd0f63292e3424e58ca93683"),
        ("item", 2_570_582, "64a625cf6c28d7c07221abfb42c0551cc8c72436"),
        ("index", 142_839, "a1a0317d0b22c7f916682eb26449a4d47ca92f61"),
    ),
}


def _minionerec(category: str) -> PublicSet:
    blobs = {}
    for part, size, blob in _MINIONEREC[category]:
        name = (
            f"index/{category}.{part}.json"
            if part in ("item", "index")
            else f"{part}/{category}_5_2016-10-2018-11.csv"
        )
        blobs[f"data/Amazon/{name}"] = (name, size, blob)
    return PublicSet(
        name=f"minionerec-{category.split('_')[0].lower()}",
        title=f"MiniOneRec's Amazon 2018 {category.replace('_', ' ')}: rows, items, semantic IDs",
        licence="Apache-2.0 for the repository; made from Amazon reviews of 2018",
        citation="MiniOneRec: An Open-Source Framework for Scaling Generative Recommendation. "
        "2025. arXiv:2510.24431",
        homepage="https://github.com/AkaliKong/MiniOneRec",
        format="minionerec",
        flags=("--category", category),
        files=files_of_commit("AkaliKong/MiniOneRec", _MINIONEREC_COMMIT, blobs),
    )


# The tree of the commit. The items of Beauty and Instruments and the histories of Yelp: no size.
_LETTER_COMMIT = "8d0154e28de37dbb6e24871c508ad8ddb1921cda"
_LETTER = {
    "Beauty": (
        ("inter", 3_212_008, "9378c6e88224ebd22e57325d89edb8cfb73291ac"),
        ("item", None, "098205baf4a483b818507dc98c4b9bc9151a69f0"),
        ("index", 634_238, "6711ba430c7a6889e60f908554f72aae8a038039"),
    ),
    "Instruments": (
        ("inter", 3_312_848, "89733901ab247616059e03c620bf3edff59bc549"),
        ("item", None, "e1b565483dc55f63dc260aab13d0b3e1d73420fd"),
        ("index", 518_041, "aacb28a8d908a4432c9eba9792b466436497da98"),
    ),
    "Yelp": (
        ("inter", None, "c80dd3c4131613d694e6be909f0485fcec3b87e3"),
        ("item", 2_673_394, "5e19bf60af056342e80a564cd6a8859a4faa236e"),
        ("index", 1_054_584, "6198e401fc8733f8cf26051a8a5133f3fee0b3ed"),
    ),
}


def _letter(data: str) -> PublicSet:
    return PublicSet(
        name=f"letter-{data.lower()}",
        title=f"LETTER's {data}: histories, items, published semantic IDs",
        licence="none stated in the repository; cite the paper",
        citation="Wang et al. Learnable Item Tokenization for Generative Recommendation. "
        "CIKM 2024. arXiv:2405.07314",
        homepage="https://github.com/HonghuiBao2000/LETTER",
        format="lcrec",
        files=files_of_commit(
            "HonghuiBao2000/LETTER",
            _LETTER_COMMIT,
            {
                f"data/{data}/{data}.{part}.json": (f"{data}.{part}.json", size, blob)
                for part, size, blob in _LETTER[data]
            },
        ),
    )


# The links are those of the repositories' READMEs.
_ON_GOOGLE_DRIVE = (
    PublicSet(
        name="lcrec",
        title="LC-Rec's Amazon 2018 Instruments, Arts and Games: histories, items, semantic IDs",
        licence="none stated by the README; cite the paper",
        citation="Zheng et al. Adapting Large Language Models by Integrating Collaborative "
        "Semantics for Recommendation. 2023. arXiv:2311.09049",
        homepage="https://github.com/zhengbw0324/LC-Rec",
        format="lcrec",
        path="Instruments",
        manual="Google Drive wants a click: open "
        "https://drive.google.com/drive/folders/1RcJ2M1l5zWPHYuGd9l5Gibcs5w5aI3y6 in a browser, "
        "download the folder of a data set, and put it into {folder}, for example as "
        "{folder}/Instruments.",
    ),
    PublicSet(
        name="p5",
        title="P5's Beauty, Sports and Toys of Amazon 2014, as most semantic-ID papers use them",
        licence="none stated by the README; cite the paper",
        citation="Geng et al. Recommendation as Language Processing (RLP): A Unified Pretrain, "
        "Personalized Prompt & Predict Paradigm (P5). RecSys 2022. arXiv:2203.13366",
        homepage="https://github.com/jeykigung/P5",
        format="p5",
        path="beauty",
        manual="Google Drive wants a click: open "
        "https://drive.google.com/file/d/1qGxgmx7G_WB7JE4Cn_bEcZ_o_NAJLE3G/view in a browser, save "
        "P5_data.zip, and unpack it so that {folder}/beauty/sequential_data.txt exists.",
    ),
    PublicSet(
        name="grid",
        title="GRID's copy of P5's Beauty, Sports and Toys, with the texts of the items",
        licence="none stated by the README; cite the paper",
        citation="Ju et al. Generative Recommendation with Semantic IDs: A Practitioner's "
        "Handbook. CIKM 2025. arXiv:2507.22224",
        homepage="https://github.com/snap-research/GRID",
        format="grid",
        path="beauty",
        manual="Google Drive wants a click: open "
        "https://drive.google.com/file/d/1B5_q_MT3GYxmHLrMK0-lAqgpbAuikKEz/view in a browser, save "
        "the archive, and unpack it so that {folder}/beauty/items exists. GRID's files are gzipped "
        "TFRecords; export them as Parquet under the same names first.",
    ),
)

AMAZON = (
    *map(_amazon_2014, _CATEGORIES_2014.split()),
    *map(_amazon_2018, _CATEGORIES_2018.split()),
    *map(_amazon_2023, _CATEGORIES_2023.split()),
    *map(_minionerec, _MINIONEREC),
    *map(_letter, _LETTER),
    *_ON_GOOGLE_DRIVE,
)
"""Every set of reviews of Amazon (and LETTER's Yelp)."""
