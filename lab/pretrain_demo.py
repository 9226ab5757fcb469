"""Pretraining of the small BERT in demo/: masked language modelling on generated sentences.

    python -m lab.pretrain_demo           # writes weights, configuration and vocabulary to demo/
    python -m lab.pretrain_demo --output_dir /tmp/bert --num_epochs 2

The sentences come from the tables of `lab/demo_rows.py`; none of them is a row of the demo's
data set. Most end in a verdict, which no row has: from verdicts the encoder learns what the words
of praise have in common. Of the chosen tokens 80 % become [MASK], 10 % a random token, and 10 %
stay, as in BERT (arXiv:1810.04805, section 3.1). BERT chooses 15 % of all tokens; here it is half
of the words that tell a good verdict from a bad one, and 10 % of the other words: with BERT's even
choice the encoder is slow to learn which words praise (on fresh sentences a linear probe of its
mean representation then reaches 0.75 after 12 epochs, instead of 0.95 after 8).
"""

import argparse
import random
import sys
from pathlib import Path

import torch
from tokenizers import BertWordPieceTokenizer
from tqdm import tqdm
from transformers import BertConfig, BertForMaskedLM, BertModel, BertTokenizerFast

from attribution.cli import run_script
from attribution.files import check_writable
from lab import demo_rows as demo
from pipeline import DEMO_MODEL

CORPUS_SEED = 77
VERDICTS = (
    (
        " and we left annoyed",
        " what a disappointment",
        " two out of ten",
        " and I will never go back",
        " and it was hardly worth the money",
        " and everyone was sorry",
    ),
    (
        " and we left happy",
        " what a pleasure",
        " nine out of ten",
        " and I will always go back",
        " and it was well worth the money",
        " and everyone was glad",
    ),
)
VERDICT_SHARE = 0.85  # of the sentences
VERDICT_RATE, OTHER_RATE = 0.5, 0.1  # shares of tokens that are chosen
# BERT's spread of 0.02 suits 768 features. With 64, 1 / sqrt(64) passes a signal on; 0.02 makes a
# plateau of most epochs.
INITIALIZER_RANGE = 0.125
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def parse_args(argv=None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output_dir", type=Path, default=DEMO_MODEL, help="where the model goes")
    parser.add_argument("--num_sentences", type=int, default=24_000, help="size of the corpus")
    parser.add_argument("--num_epochs", type=int, default=12, help="passes over the corpus")
    parser.add_argument("--batch_size", type=int, default=64, help="sentences a step")
    parser.add_argument(
        "--learning_rate", type=float, default=2e-3, help="peak of a one-cycle schedule"
    )
    parser.add_argument("--seed", type=int, default=0, help="start weights, masks and order")
    return parser.parse_args(argv)


def make_corpus(count: int = 24_000) -> list[str]:
    """Sentences for masked language modelling: `count` distinct ones, none of them a row of the
    demo's data set.
    """
    seen = {sentence for columns in demo.make_rows().values() for sentence in columns["sentence"]}
    generator = random.Random(CORPUS_SEED)
    corpus: list[str] = []
    while len(corpus) < count:
        topic, label = generator.choice(sorted(demo.TOPICS)), generator.randrange(2)
        sentence = demo.statement(generator, topic, label)
        if generator.random() < VERDICT_SHARE:
            sentence += f",{generator.choice(VERDICTS[label])}."
        else:
            sentence += demo.close(generator)
        if sentence not in seen:
            seen.add(sentence)
            corpus.append(sentence)
    return corpus


def build_tokenizer(corpus: list[str], output_dir: Path) -> BertTokenizerFast:
    """A WordPiece tokenizer, uncased, learned from the corpus; its vocabulary is in alphabetical
    order.
    """
    trainer = BertWordPieceTokenizer(lowercase=True)
    trainer.train_from_iterator(corpus, vocab_size=900, min_frequency=2, show_progress=False)
    words = SPECIAL + sorted(word for word in trainer.get_vocab() if word not in SPECIAL)
    output_dir.mkdir(parents=True, exist_ok=True)
    (output_dir / "vocab.txt").write_text("\n".join(words) + "\n")
    return BertTokenizerFast(
        vocab=str(output_dir / "vocab.txt"), do_lower_case=True, model_max_length=128
    )


def choice_rates(tokenizer) -> torch.Tensor:
    """(V,): for every word of the vocabulary the share of its occurrences to be predicted."""
    bad, good = (set(" ".join(verdicts).split()) for verdicts in VERDICTS)
    rates = torch.full((len(tokenizer),), OTHER_RATE)
    rates[tokenizer(" ".join(sorted(bad ^ good)), add_special_tokens=False)["input_ids"]] = (
        VERDICT_RATE
    )
    rates[: len(SPECIAL)] = 0.0
    return rates


def mask_tokens(ids: torch.Tensor, rates: torch.Tensor, generator: torch.Generator, mask_id: int):
    """Returns (inputs, targets), both (B, T); a target is -100 where nothing is to be predicted."""
    chosen = torch.rand(ids.shape, generator=generator) < rates[ids]
    fate = torch.rand(ids.shape, generator=generator)
    noise = torch.randint(len(SPECIAL), len(rates), ids.shape, generator=generator)
    inputs = torch.where(chosen & (fate < 0.8), mask_id, ids)
    inputs = torch.where(chosen & (fate >= 0.9), noise, inputs)
    return inputs, torch.where(chosen, ids, -100)


def main(argv=None) -> None:
    """Builds the tokenizer, trains the masked language model and saves both."""
    args = parse_args(argv)
    check_writable(args.output_dir)
    corpus = make_corpus(args.num_sentences)
    tokenizer = build_tokenizer(corpus, args.output_dir)
    torch.manual_seed(args.seed)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=128,
        max_position_embeddings=128,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=INITIALIZER_RANGE,
    )
    model = BertForMaskedLM(config)
    rows = tokenizer(corpus, padding=True, return_tensors="pt")
    generator = torch.Generator().manual_seed(args.seed)
    rates = choice_rates(tokenizer)
    steps = args.num_epochs * -(-len(corpus) // args.batch_size)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=args.learning_rate, weight_decay=0.01, fused=True
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, args.learning_rate, total_steps=steps, pct_start=0.1
    )
    model.train()
    bar = tqdm(range(args.num_epochs), desc="epochs")
    for _ in bar:
        total = 0.0
        batches = torch.randperm(len(corpus), generator=generator).split(args.batch_size)
        for index in batches:
            length = int(rows["attention_mask"][index].sum(1).max())
            ids, mask = rows["input_ids"][index, :length], rows["attention_mask"][index, :length]
            inputs, targets = mask_tokens(ids, rates, generator, tokenizer.mask_token_id)
            loss = model(input_ids=inputs, attention_mask=mask, labels=targets).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        bar.set_postfix(loss=f"{total / len(batches):.3f}")
    # Masked language modelling trains no pooler: one is drawn here, so that all fine-tuned models
    # start from it.
    encoder = BertModel(config)
    encoder.load_state_dict(model.bert.state_dict(), strict=False)
    encoder.save_pretrained(args.output_dir)
    tokenizer.save_pretrained(args.output_dir)


if __name__ == "__main__":
    sys.exit(run_script(main))
