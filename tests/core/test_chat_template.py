"""Chat templates of strangers: rendered as transformers renders them, within a budget."""

import copy
import pickle
import time

import golden_parts
import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from abc_embed.chat import read_chat_template
from abc_embed.chat_template import ChatTemplate
from abc_embed.errors import CheckpointError
from abc_embed.inputs import Item
from abc_embed.prompts import messages

ITEMS = [Item("a dog <b>"), Item(image="x"), Item(image="x", instruction="left?")]

EVERYTHING = """
{%- set ns = namespace(x='') -%}
{%- for m in messages[::-1] %}
  {%- set ns.x = ns.x ~ m['role'] %}
  {%- if loop.last %}{% generation %}
    {{- m['content'] | selectattr('type', 'equalto', 'text') | map(attribute='text') | join(', ') }}
  {%- endgeneration %}{% endif %}
{%- endfor %}
{{ ns.x }} {{ messages | tojson }} {{ messages[0].content[-1].text.split(' ')[0].strip() }}
{% macro f(a, b=2) %}{{ a }}-{{ b }}{{ caller() if caller }}{% endmacro %}
{{ f(1) }}{% call f(3) %}inside{% endcall %}
{% for a, b in messages[0].items() %}{{ a }}{% break %}{% endfor %}
{{ 7 % 2 + 3 * 2 ** 3 }} {{ 'ab' * 3 }} {{ 'x'.center(5) }} {{ 'a-b'.replace('-', '+') }}
{{ ['a', 'b'] | length }} {{ dict(a=1) | tojson(indent=2) }} {{ (1, 2) | list }}
{% set words %}{{ 'in' }}side{% endset %}{{ words }}{{ none if false }}
{% for k in range(3) recursive %}{{ loop.index }}{% endfor %}
{%- if tools %}tools{% endif %}{% if add_generation_prompt %}assistant{% endif %}
"""


@pytest.mark.parametrize("source", [read_chat_template(golden_parts.BASE), EVERYTHING])
def test_it_renders_what_transformers_renders(source: str) -> None:
    template = ChatTemplate(source)
    for item in ITEMS:
        chat = messages(item)
        theirs, _ = render_jinja_template([chat], chat_template=source, add_generation_prompt=True)
        assert template.render(chat) == theirs[0]


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% for a in range(99999) recursive %}{{ loop(range(99999)) }}{% endfor %}",
        "{{ 'a' * 6000000000 }}",
        "{{ 'a' * 6e9 }}",
        "{{ 6000000000 * 'a' }}",
        "{{ 10 ** (10 ** 10) }}",
        "{% set ns = namespace(s='ab') %}" + "{% set ns.s = ns.s ~ ns.s %}" * 60,
        "{% set s = 'ab' %}" + "{% set s = s + s %}" * 60,
        "{% set s = 'ab' %}" + "{% set s %}{{ s }}{{ s }}{% endset %}" * 60,
        "{% set a = [1] %}" + "{% set a = [a, a] %}" * 60 + "{{ a }}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) ~ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ 'a'.center(6000000000) }}",
        "{{ '\t\t'.expandtabs(6000000000) }}",
        "{{ 'a' | center(6000000000) }}",
        "{{ '%6000000000d' % 1 }}",
        "{{ '{:6000000000}'.format(1) }}",
        "{{ lipsum(n=100000) }}",
        "{{ ('ab' * 9999).replace('a', 'x' * 99999) }}",
        "{{ range(99999) | map('replace', '', 'a' * 99999) | join }}",
        "{{ ('b' * 9999).join(['a'] * 9999) }}",
        "{{ [[1] * 9999] * 9999 }}",
        "{{ messages | tojson(indent=100000) }}",
        "{{ strftime_now('%999999999d') }}",
        "{{ (1).to_bytes(6000000000) }}",
        "{% include 'x' %}",
        "{{ 1 / 0 }}",
        "{{ (((( ",
        "{{ " + "(" * 5000 + ")" * 5000 + " }}",
        "{{ x.y.z }}",
        "x" * 300_000,
    ],
)
def test_no_template_takes_time_or_memory(source: str) -> None:
    start = time.process_time()
    with pytest.raises(CheckpointError, match="the chat template"):
        ChatTemplate(source).render(messages(ITEMS[0]))
    assert time.process_time() - start < 10


def test_a_long_text_has_a_budget_of_its_own() -> None:
    source = "{% for m in messages %}{{ m.content[0].text | trim | upper }}{% endfor %}"
    assert len(ChatTemplate(source).render(messages(Item("a dog " * 100_000)))) == 599_999


def test_it_goes_to_other_processes() -> None:
    template = ChatTemplate(EVERYTHING)
    for other in (copy.deepcopy(template), pickle.loads(pickle.dumps(template))):
        assert other.render(messages(ITEMS[2])) == template.render(messages(ITEMS[2]))
