"""What a server is to this machine: whether it can be reached, and how fast answers will come.

Each thing that is looked at needs the ones before it: the first fault is the last finding.
"""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from statistics import median

from runtime.config import ConfigError, EdgeConfig, parse_address
from runtime.doctor.finding import Finding, fault, ok, warning
from runtime.doctor.prediction import Prediction
from runtime.doctor.probe import predict
from runtime.doctor.probed_link import ProbedLink
from runtime.edge import greeting
from runtime.edge.draft.batcher import Batcher
from runtime.edge.loading import Vocabulary, make_drafter, read_vocabulary, translation_for
from runtime.edge.net.link import Credentials, ServerError, reach
from runtime.edge.prompts import Prompts
from runtime.edge.worker import drafting
from runtime.model.config import ModelError
from runtime.terminal import called
from runtime.wire.messages import ErrorCode

PINGS = 9
PROBE_TOKENS = 64
QUESTIONS = (
    "Explain how a bicycle stays upright.",
    "Write a short poem about the sea in autumn.",
    "Which steps does it take to bake bread? Number them.",
    "What is a prime number? Give five examples.",
)
# Uploads grow until one takes so much longer than a Ping: less is not told apart from noise.
FIRST_TOKENS, MOST_TOKENS, GROWTH, ENOUGH_S = 512, 1 << 17, 8, 0.25
SLOW_BYTES_PER_S = 50e3

MENDS = {
    ErrorCode.VERSION: "install the same version of SpecEdge on both ends",
    ErrorCode.VOCABULARY: (
        "give --tokenizer the target's, or --draft a small model of the target's family"
    ),
    ErrorCode.BUSY: "try again in a while; its operator may raise --max-connections",
    ErrorCode.DRAINING: "it is being stopped: try again in a while",
    ErrorCode.AUTHENTICATION: (
        "give --user and --token-file; its operator makes a token with --users FILE --add-user NAME"
    ),
}


class Halt(Exception):
    """A fault that nothing can be looked at behind."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(finding.sentence)
        self.finding = finding


async def look(config: EdgeConfig) -> AsyncIterator[Finding]:
    """From the address to the speed of answers."""
    try:
        async with _opened(config) as (link, vocabulary):
            yield ok("connection", f"{config.server} answers" + (", under TLS" * bool(config.tls)))
            yield vocabularies(link, vocabulary, config)
            yield template(link, vocabulary, config)
            rtts_s = [await link.ping() for _ in range(PINGS)]
            yield round_trip(rtts_s)
            yield upload(*await _upload(link, min(rtts_s)))
            other = "--drafter" if config.drafter else "model with --draft"
            with _stage("draft", lambda error: f"name another {other}"):
                batcher = Batcher(make_drafter(config))
            try:
                prediction = await _predict(link, batcher, vocabulary, config, median(rtts_s))
            finally:
                await batcher.close()
            yield draft_pass(batcher.pace.pass_s)
            yield speed(prediction)
    except Halt as halt:
        yield halt.finding
    except ServerError as error:
        yield fault("answers", str(error), _mend(error, config))


@contextmanager
def _stage(topic: str, mend: Callable[[Exception], str]) -> Iterator[None]:
    """What a user can mend in it is the last finding."""
    try:
        yield
    except (ConfigError, ModelError, ServerError) as error:
        raise Halt(fault(topic, str(error), mend(error))) from error


@asynccontextmanager
async def _opened(config: EdgeConfig) -> AsyncIterator[tuple[ProbedLink, Vocabulary]]:
    """A link that the server has welcomed. Raises Halt."""
    usage = f"see {called('runtime.edge')} --help"
    with _stage("options", lambda error: usage):
        address = parse_address(config.server)
        token, trusted = greeting.token(config), greeting.trusted(config)
    with _stage("connection", lambda error: _mend(error, config)):
        await reach(*address, trusted, config.stack)
    with _stage("draft", lambda error: "name another model with --draft"):
        vocabulary = read_vocabulary(config)
        hello = greeting.hello(config, vocabulary)
    with _stage("greeting", lambda error: _mend(error, config)):
        credentials = Credentials(token, trusted, vocabulary.tokenizer.vocabulary_hash)
        link = await ProbedLink.open(*address, hello, credentials, config.stack)
    assert isinstance(link, ProbedLink), "open gives a link of its own class"
    try:
        yield link, vocabulary
    finally:
        await link.close()


def _mend(error: Exception, config: EdgeConfig) -> str:
    """What to do about a server that cannot be had."""
    code = getattr(error, "code", None)
    if code is not None:
        return MENDS.get(code, "look at the server's log")
    if config.tls:
        return (
            "check that the server runs there with a certificate, and give --tls the pin that it "
            "prints when it starts, or its authority's file"
        )
    return (
        "check the address, a firewall on the way, and that the server runs there and is ready; "
        "if it has a certificate, give --tls"
    )


def vocabularies(link: ProbedLink, vocabulary: Vocabulary, config: EdgeConfig) -> Finding:
    """The server and we mean the same by ids, or the greeting would have failed. Raises Halt."""
    target, ours = link.welcome.vocabulary_size, vocabulary.rows
    sentence = f"that of {link.welcome.model}, {target} tokens"
    with _stage("draft", lambda error: "name another model with --draft"):
        translation = translation_for(config)
    if translation is not None:
        sentence += (
            f"; the draft has another one: {translation.shared} of its {translation.rows} pieces "
            "are the target's too, and others are spelled in the target's"
        )
    elif target != ours:
        sentence += f"; the draft has rows for {ours}, and what only one of them has is not drafted"
    figures = {"target_tokens": target, "draft_tokens": ours, "target": link.welcome.model}
    return ok("vocabulary", sentence, **figures)


def template(link: ProbedLink, vocabulary: Vocabulary, config: EdgeConfig) -> Finding:
    """Whose chat template the prompts of this edge are written in, and whether it writes one."""
    whose = "the target's" if link.template else "the draft's; the target has the same or none"
    if config.chat_template:
        named = "the draft's" if config.chat_template == "draft" else config.chat_template
        whose = f"{named}, since --chat-template says so"
    if config.raw:
        whose = "none, since --raw says so"
    try:
        Prompts(vocabulary.tokenizer, link).encode(QUESTIONS[0], config)
    except ConfigError as error:
        mend = "give --chat-template FILE or --chat-template draft, or --raw to do without"
        raise Halt(fault("template", str(error), mend)) from error
    return ok("template", whose, from_target=link.template is not None)


def round_trip(rtts_s: list[float]) -> Finding:
    low_ms, median_ms, high_ms = min(rtts_s) * 1e3, median(rtts_s) * 1e3, max(rtts_s) * 1e3
    sentence = f"{median_ms:.1f} ms, the median of {len(rtts_s)}; {low_ms:.1f} to {high_ms:.1f}"
    return ok("round trip", sentence, median_ms=median_ms, low_ms=low_ms, high_ms=high_ms)


async def _upload(link: ProbedLink, rtt_s: float) -> tuple[int, float]:
    """Bytes of the largest upload that was tried, and the seconds that they took by themselves."""
    most_tokens = max(min(MOST_TOKENS, link.welcome.max_context - 2), 1)
    n_tokens = min(FIRST_TOKENS, most_tokens)
    while True:
        sent_bytes, seconds = await link.upload(n_tokens)
        if seconds > 2 * rtt_s:  # otherwise most of it may be the way
            seconds -= rtt_s
        if seconds >= ENOUGH_S or n_tokens == most_tokens:
            return sent_bytes, seconds
        n_tokens = min(GROWTH * n_tokens, most_tokens)


def upload(sent_bytes: int, seconds: float) -> Finding:
    """What a prompt waits for; down there is little: 28 bytes a verdict."""
    rate = sent_bytes / seconds
    sentence = f"at least {rate / 1e3:.0f} kB/s, in a burst of {sent_bytes / 1e3:.1f} kB"
    figures = {"bytes_per_s": rate, "burst_bytes": sent_bytes}
    if rate < SLOW_BYTES_PER_S:
        mend = "take a faster line, or fewer nodes: --max-budget; a prompt of 1000 tokens has 2 kB"
        return warning("upload", f"{sentence}: prompts will wait", mend, **figures)
    return ok("upload", sentence, **figures)


async def _predict(
    link: ProbedLink, batcher: Batcher, vocabulary: Vocabulary, config: EdgeConfig, rtt_s: float
) -> Prediction | None:
    prompts = Prompts(vocabulary.tokenizer, link)
    config = replace(config, max_tokens=min(PROBE_TOKENS, max(link.welcome.max_context // 4, 1)))
    return await predict(
        link,
        batcher,
        [prompts.encode(question, config) for question in QUESTIONS],
        prompts.sampling(config),
        drafting(config, vocabulary.matcher),
        rtt_s,
    )


def draft_pass(pass_s: float) -> Finding:
    return ok("drafting", f"a pass takes {pass_s * 1e3:.1f} ms here", pass_ms=pass_s * 1e3)


def speed(prediction: Prediction | None) -> Finding:
    """Of one answer; a server shared with others is another matter."""
    if prediction is None:
        mend = "ask it yourself with --prompt: the model may want another chat template"
        return warning("speed", "short questions had answers of hardly any token", mend)
    plain, drafted = prediction.plain_per_s, prediction.drafted
    with_drafts = prediction.drafted_per_s
    figures: dict[str, object] = {"plain_tokens_per_s": plain, "drafted_tokens_per_s": with_drafts}
    if drafted is None:
        sentence = (
            f"predicted: {plain:.1f} tokens/s; the server takes no drafts, since a step is cheaper "
            "there than waiting for one"
        )
        return warning("speed", sentence, "--max-budget 0 saves this machine's work", **figures)
    longest_ms = drafted.longest_rtt_s(plain) * 1e3
    figures |= {
        "tokens_per_verification": drafted.tokens,
        "nodes": drafted.nodes,
        "verify_ms": (drafted.verify_s + drafted.queue_s) * 1e3,
        "draft_ms": drafted.draft_s * 1e3,
        "plain_share": prediction.plain_share,
        "longest_rtt_ms": longest_ms,
    }
    sentence = (
        f"predicted: {with_drafts:.1f} tokens/s with drafts, {plain:.1f} without; "
        f"{drafted.tokens:.2f} tokens a verification, of {drafted.nodes:.0f} nodes, after "
        f"{figures['draft_ms']:.0f} ms of drafting, {prediction.rtt_s * 1e3:.0f} of way and "
        f"{figures['verify_ms']:.0f} of the server"
    )
    if with_drafts >= plain:
        return ok("speed", sentence, **figures)
    mend = "a draft that is right more often, or faster"
    if longest_ms > 0:
        mend = f"a server within a round trip of {longest_ms:.0f} ms, or {mend}"
    return warning("speed", sentence, f"drafts would pay with {mend}", **figures)
