//! Kubernetes label selectors: `matchLabels` and `matchExpressions`, all of which must hold.

use std::collections::BTreeMap;

/// A label selector. An empty one selects everything.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Selector {
    pub expressions: Vec<Expression>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expression {
    In { key: String, values: Vec<String> },
    NotIn { key: String, values: Vec<String> },
    Exists { key: String },
    DoesNotExist { key: String },
}

impl Selector {
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.expressions.iter().all(|expression| match expression {
            Expression::In { key, values } => labels.get(key).is_some_and(|v| values.contains(v)),
            // A label that is not there is not in the set either.
            Expression::NotIn { key, values } => !labels.get(key).is_some_and(|v| values.contains(v)),
            Expression::Exists { key } => labels.contains_key(key),
            Expression::DoesNotExist { key } => !labels.contains_key(key),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    fn one(expression: Expression) -> Selector {
        Selector { expressions: vec![expression] }
    }

    #[test]
    fn an_empty_selector_selects_everything() {
        assert!(Selector::default().matches(&labels(&[])));
        assert!(Selector::default().matches(&labels(&[("app", "cart")])));
    }

    #[test]
    fn each_operator_means_what_kubernetes_says() {
        let key = || "app".to_owned();
        let values = || vec!["cart".to_owned(), "shop".to_owned()];
        let (cart, other, none) = (labels(&[("app", "cart")]), labels(&[("app", "x")]), labels(&[]));
        let cases = [
            (Expression::In { key: key(), values: values() }, [true, false, false]),
            (Expression::NotIn { key: key(), values: values() }, [false, true, true]),
            (Expression::Exists { key: key() }, [true, true, false]),
            (Expression::DoesNotExist { key: key() }, [false, false, true]),
        ];
        for (expression, expected) in cases {
            let selector = one(expression);
            let got = [&cart, &other, &none].map(|labels| selector.matches(labels));
            assert_eq!(got, expected, "{selector:?}");
        }
    }
}
