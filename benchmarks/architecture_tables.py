"""The tables of docs/architecture.md."""

import re

MEASURES = {
    'parameters': 'parameters',
    'operations': 'flops',
    'forward': 'forward',
    'step': 'step',
    'kept': 'kept',
}


def markdown(heads, rows) -> str:
    """Format rows of text as a Markdown table."""
    return '\n'.join(f'| {" | ".join(row)} |' for row in (heads, ['---'] * len(heads), *rows))


def options_table(report) -> str:
    first = report['rows'][0]
    absolute = {
        'parameters': f'{first["parameters"] / 1e6:.1f} million',
        'operations': f'{first["flops"] / 1e9:.2f} GFLOP',
        'kept': f'{first["kept"] / 2**20:.0f} MiB',
    }
    rows = [['baseline', *(absolute.get(measure, '1') for measure in MEASURES)]]
    for row in report['rows'][1:]:
        rows.append(
            [
                f'`{row["option"]}`'
                if '=' in row['option'] or '.' in row['option']
                else row['option'],
                *(f'{row["relative"][measure]:.2f}' for measure in MEASURES),
            ]
        )
    return markdown(['changed', *MEASURES], rows)


def levels_table(report) -> str:
    total = {key: sum(row[key] for row in report['levels']) for key in ('parameters', 'flops')}
    return markdown(
        ['part', 'pixels', 'channels', 'residual blocks', 'attention', 'parameters', 'operations'],
        [
            [
                row['part'],
                *(
                    '' if row[key] is None else f'{row[key]}'
                    for key in ('pixels', 'channels', 'blocks', 'attentions')
                ),
                *(f'{100 * row[key] / total[key]:.1f} %' for key in total),
            ]
            for row in report['levels']
        ],
    )


def configs_table(report) -> str:
    """Make a table with one row for each network and the names of all configs that use it."""
    networks = {}
    for row in report['configs']:
        networks.setdefault(
            (row['network'], row['pixels'], row['parameters'], row['flops']), []
        ).append(row['config'].replace('.', '/'))
    return markdown(
        ['`model.name`', 'configs', 'pixels', 'parameters, millions', 'GFLOP an image'],
        [
            [
                network,
                ', '.join(f'`{name}`' for name in names),
                f'{pixels}',
                f'{parameters / 1e6:.2f}',
                f'{flops / 1e9:#.3g}'.rstrip('.'),
            ]
            for (network, pixels, parameters, flops), names in sorted(
                networks.items(), key=lambda item: (item[0][0], item[0][1], item[0][2])
            )
        ],
    )


TABLES = {'options': options_table, 'levels': levels_table, 'configs': configs_table}


def with_tables(text: str, report: dict) -> str:
    """Return the text with each table of the report between its marks.

    The marks are `<!-- table: options -->` and `<!-- end -->`.
    """
    for name, table in TABLES.items():
        mark = f'<!-- table: {name} -->'
        text, found = re.subn(
            f'{mark}\n.*?<!-- end -->',
            lambda _, mark=mark, table=table: f'{mark}\n{table(report)}\n<!-- end -->',
            text,
            flags=re.DOTALL,
        )
        assert found == 1, f'expected {mark} once in the text, found it {found} times'
    return text
