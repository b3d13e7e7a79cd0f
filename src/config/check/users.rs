//! `[[user]]`, here and in the users file.

use std::collections::{HashMap, hash_map};

use super::{
    AuthMethod, Secret, file, files,
    part::{Checker, Part},
    pool_mode,
};
use crate::{Side, config::User, config::schema::USERS_FILE};

impl Checker<'_> {
    /// Users of both files.
    pub(super) fn users(&self, auth: &Part<'_>, method: AuthMethod) -> HashMap<String, User> {
        let mut users = HashMap::new();
        for part in self.tables("user") {
            add_user(&part, method, &mut users);
        }
        let Some(contents) = auth.secret_file("users_file") else { return users };
        let path = auth.path("users_file").expect("it was read");
        let Ok(text) = String::from_utf8(contents.bytes) else {
            auth.mistake("users_file", "is not UTF-8", None);
            return users;
        };
        let mut found = Vec::new();
        let mut root = file::parse(&text, &path.to_string_lossy(), &mut found);
        if found.is_empty() {
            file::conform(&mut root, USERS_FILE, &mut found);
            for part in self.tables_in(&root, "user") {
                add_user(&part, method, &mut users);
            }
        }
        self.found(found);
        users
    }
}

fn add_user(part: &Part<'_>, method: AuthMethod, users: &mut HashMap<String, User>) {
    let Some(name) = part.text("name") else { return };
    // NAMEDATALEN - 1: Postgres cuts longer names, so two users could become one.
    if name.is_empty() || name.len() > 63 {
        part.mistake("name", "must have 1 to 63 bytes", None);
        return;
    }
    let secret = files::password(part);
    let written = part.is_written("password") || part.is_written("password_file");
    let fits = match method {
        AuthMethod::Scram => !matches!(secret, Secret::Md5(_)),
        // As in Postgres, a user with a SCRAM verifier proves itself by SCRAM under "md5" too.
        AuthMethod::Md5 | AuthMethod::Certificate | AuthMethod::Trust => true,
    };
    if !fits {
        let hint = Some("set auth.method = \"md5\", or give the password or a SCRAM verifier".to_owned());
        part.mistake("password", "an md5 hash cannot be checked by \"scram-sha-256\"", hint);
    }
    if !written && matches!(method, AuthMethod::Scram | AuthMethod::Md5) {
        part.mistake("password", "missing: this user could never log in", None);
    }
    let backend = Side::BOTH.map(|side| {
        let inner = part.inner(side.name())?;
        let user = inner.text("user").unwrap_or_else(|| name.clone());
        if user.is_empty() {
            inner.mistake("user", "is empty", None);
        }
        Some((user, files::password(&inner)))
    });
    let user = User {
        name: name.clone(),
        secret,
        backend,
        pool_mode: part.text("pool_mode").map(|word| pool_mode(&word)),
        pool_size: part.optional_number("pool_size"),
        max_clients: part.optional_number("max_clients"),
    };
    match users.entry(name) {
        hash_map::Entry::Vacant(place) => {
            place.insert(user);
        }
        hash_map::Entry::Occupied(first) => {
            part.mistake("name", format!("the user {:?} is there twice", first.key()), None);
        }
    }
}
