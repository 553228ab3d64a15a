//! The forms of a status that programs read, by what reads them: jsonschema and Prometheus' own parser.

use std::collections::BTreeMap;

use super::case::{CASE, Case, is_installed};
use super::json::flat;
use super::{Run, Supervisor};

/// In the venv of the servers.
const READERS: Case = Case { needs: &["import jsonschema", "import prometheus_client"], ..CASE };

/// A field that is not in the schema is an error here. Prints a line for each sample, without the label `control`, which
/// has to be the path.
const CHECK: &str = r#"
import json, sys
from jsonschema import Draft202012Validator
from prometheus_client.parser import text_string_to_metric_families
path, schema, status, metrics = sys.argv[1:]
def close(schema):
    if 'properties' in schema: schema['additionalProperties'] = False
    for inner in schema.get('properties', {}).values(): close(inner)
    if 'items' in schema: close(schema['items'])
schema = json.load(open(schema))
Draft202012Validator.check_schema(schema)
close(schema)
Draft202012Validator(schema).validate(json.loads(status))
for family in text_string_to_metric_families(metrics):
    assert family.name.startswith('handoff_run_') and family.documentation and family.type in ('gauge', 'counter'), family
    assert family.samples, family
    for sample in family.samples:
        labels = dict(sample.labels)
        assert labels.pop('control') == path, sample
        print(sample.name + ''.join(f'{{{key}={value}}}' for key, value in labels.items()), sample.value)
"#;

/// Both of them.
pub struct Forms {
    /// By their paths.
    json: BTreeMap<String, String>,
    /// By their names with their labels, both without what they all begin with.
    metrics: BTreeMap<String, f64>,
}

/// If not, that is visible.
pub fn are_readers_installed() -> bool {
    is_installed(&READERS)
}

impl Forms {
    /// Of texts, one of a supervisor whose control socket is at `path`.
    #[track_caller]
    pub fn read(path: &str, status: &str, metrics: &str) -> Forms {
        let schema = concat!(env!("CARGO_MANIFEST_DIR"), "/man/status.schema.json");
        let output = Run::of("python3").args(&["-c", CHECK, path, schema, status, metrics]).output();
        assert_eq!(output.failure(), (0, ""), "{status}{metrics}");
        let sample = |line: &str| {
            let (name, value) = line.strip_prefix("handoff_run_").unwrap().rsplit_once(' ').unwrap();
            (name.to_owned(), value.parse().unwrap())
        };
        let forms = Forms { json: flat(status), metrics: output.stdout.lines().map(sample).collect() };
        assert_eq!(output.stdout.lines().count(), forms.metrics.len(), "a sample is there twice: {metrics}");
        forms
    }

    #[track_caller]
    pub fn field(&self, name: &str) -> &str {
        self.json.get(name).unwrap_or_else(|| panic!("no {name} in {:?}", self.json))
    }

    #[track_caller]
    pub fn number(&self, name: &str) -> f64 {
        self.field(name).parse().unwrap()
    }

    /// If it is there.
    pub fn metric(&self, name: &str) -> Option<f64> {
        self.metrics.get(name).copied()
    }

    /// The samples of a metric that are not 0, by their one label.
    pub fn by_label(&self, metric: &str) -> Vec<(&str, f64)> {
        let samples = self.metrics.iter().filter(|(sample, value)| sample.starts_with(metric) && **value != 0.0);
        let labels = samples.filter_map(|(sample, value)| {
            let (_, label) = sample[metric.len()..].strip_prefix('{')?.strip_suffix('}')?.split_once('=')?;
            Some((label, *value))
        });
        labels.collect()
    }
}

impl Supervisor {
    /// Its status, while nothing changes.
    #[track_caller]
    pub fn forms(&self) -> Forms {
        Forms::read(&self.folder.text("control"), &self.status(&["--json"]), &self.status(&["--prometheus"]))
    }
}
