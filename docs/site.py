"""Add linked files and the API reference to the site, besides the pages of this folder.

Pages can also be read without the site, so they link to files outside this folder with `../`. The
site contains copies of these files, and the links are adapted. Each page of the API reference lists
modules, whose docstrings mkdocstrings renders.
"""

import pathlib
import re

from mkdocs.structure.files import File, InclusionLevel

ROOT = pathlib.Path(__file__).parents[1]
LINK = re.compile(r'(\]\()((?:\.\./)+)([\w./-]+)')
REFERENCE = {
    'models': (
        'Score models',
        'score_model models.score sde_lib sdes.base models.ema models.utils',
    ),
    'training': ('Training', 'losses run_lib'),
    'sampling': (
        'Sampling',
        'sampling solvers.options solvers.loop solvers.predictor_corrector solvers.predictors '
        'solvers.few_steps solvers.grids solvers.adaptive solvers.ode',
    ),
    'likelihood': ('Likelihood', 'likelihood control.latents'),
    'control': (
        'Control',
        'controllable_generation control.measurements control.guidance control.projection',
    ),
    'data': ('Data', 'datasets data.images data.batches'),
    'evaluation': (
        'Evaluation',
        'evaluation metrics.distances metrics.extractors metrics.reference',
    ),
    'files': ('Files', 'checkpoints.files checkpoints.states checkpoints.trained utils'),
}


def on_files(files, config):
    """Add the linked files outside the folder, and the pages of the API reference."""
    pages = [file for file in files if file.src_uri.endswith('.md')]
    for name in sorted({name for page in pages for name in _outside(page)}):
        linked = {'abs_src_path': str(ROOT / name), 'inclusion': InclusionLevel.INCLUDED}
        files.append(File.generated(config, name, **linked))
    for name, (title, modules) in REFERENCE.items():
        text = f'# {title}\n\n' + '\n\n'.join(f'::: {module}' for module in modules.split())
        files.append(File.generated(config, f'api/{name}.md', content=text))
    return files


def on_page_markdown(markdown, page, config, files):
    """Change links to files outside the folder to their paths on the site."""
    markdown = markdown.replace('](../docs/', '](../')  # links in a page from another folder
    return LINK.sub(lambda link: f'{link[1]}{_on_site(page.file.src_uri, link)}', markdown)


def _outside(page) -> set[str]:
    links = LINK.finditer(pathlib.Path(page.abs_src_path).read_text())
    names = {link[3] for link in links if _is_outside(page.src_uri, link)}
    return {name for name in names if (ROOT / name).is_file()}


def _is_outside(uri: str, link) -> bool:
    return len(link[2]) // 3 > uri.count('/')


def _on_site(uri: str, link) -> str:
    """Return the path of a link on the site, with one `../` less if it leaves the folder."""
    return link[2][3:] + link[3] if _is_outside(uri, link) else link[2] + link[3]
