//! Kubernetes label selectors: `matchLabels` and `matchExpressions`, all of which must hold.

use std::collections::BTreeMap;

/// What a selector is asked of.
pub trait Labelled {
    fn label(&self, key: &str) -> Option<&str>;
}

impl Labelled for BTreeMap<String, String> {
    fn label(&self, key: &str) -> Option<&str> {
        self.get(key).map(String::as_str)
    }
}

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
    pub fn matches(&self, labels: &impl Labelled) -> bool {
        let has = |key: &str, values: &[String]| {
            labels.label(key).is_some_and(|value| values.iter().any(|wanted| wanted == value))
        };
        self.expressions.iter().all(|expression| match expression {
            Expression::In { key, values } => has(key, values),
            // A label that is not there is not in the set either.
            Expression::NotIn { key, values } => !has(key, values),
            Expression::Exists { key } => labels.label(key).is_some(),
            Expression::DoesNotExist { key } => labels.label(key).is_none(),
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
