//! Objects: `GET`, `HEAD`, `PUT`, `POST` and `DELETE` of one key.
//!
//! Each becomes one operation of the core. A write without `X-Riak-Vclock` replaces nothing it has not seen, so
//! it makes a sibling where the bucket keeps them. `If-Unmodified-Since` on a write is the one exception: the core
//! knows no dates, so the object is read first and the write then depends on the tag that was read.

use std::sync::Arc;

use hyper::header::{HeaderValue, LOCATION};
use hyper::http::request::Parts;
use hyper::{Method, Response, StatusCode};
use oort_core::active::{Ask, Value as Lua};
use oort_core::bucket::BucketProperties;
use oort_core::causality::VersionVector;
use oort_core::client::{Operation, Quorum, Reply, Request, Updated, Want};
use oort_core::mutation::{Basis, Condition, Expiry, Mutation};
use oort_core::object::Object;
use oort_core::types::ObjectKey;

use crate::http::aso;
use crate::http::body::Body;
use crate::http::conditions::{Conditions, Outcome, WriteCheck};
use crate::http::guard;
use crate::http::parameters::{self, Parameters};
use crate::http::refusal::Refusal;
use crate::http::representation::{self, accepts_multipart, stored_headers, Accept, View};
use crate::http::route::Place;
use crate::http::shared::Shared;
use crate::http::upload::Upload;
use crate::token::{self, Binding};

/// The request header that says how many seconds a value lives.
const TTL: &str = "x-oort-ttl";
/// Bodies up to this are read without asking for the bucket's limit first; the core checks it again anyway.
const SMALL_BYTES: u64 = 64 << 10;

/// Serves one request for the object `key`.
pub async fn serve(
    shared: &Shared,
    head: &Parts,
    parameters: Parameters,
    body: &mut Upload,
    place: Place,
    key: &[u8],
) -> Result<Response<Body>, Refusal> {
    let target = Target::new(shared, head, parameters, place, key)?;
    match head.method {
        Method::PUT | Method::POST => target.put(body, StatusCode::OK).await,
        Method::DELETE => target.delete().await,
        _ => target.get().await,
    }
}

/// Stores a new object under a key that this node makes up.
pub async fn create(
    shared: &Shared,
    head: &Parts,
    parameters: Parameters,
    body: &mut Upload,
    place: Place,
) -> Result<Response<Body>, Refusal> {
    let key = shared.new_name();
    let location = format!("{}/{key}", place.keys_path);
    let target = Target::new(shared, head, parameters, place, key.as_bytes())?;
    let mut response = target.put(body, StatusCode::CREATED).await?;
    let location = HeaderValue::try_from(location).map_err(|_| Refusal::bad_request("malformed path"))?;
    response.headers_mut().insert(LOCATION, location);
    Ok(response)
}

/// One request, its parts read.
struct Target<'a> {
    shared: &'a Shared,
    head: &'a Parts,
    place: Place,
    key: ObjectKey,
    parameters: Parameters,
    conditions: Conditions,
}

impl<'a> Target<'a> {
    fn new(
        shared: &'a Shared,
        head: &'a Parts,
        parameters: Parameters,
        place: Place,
        key: &[u8],
    ) -> Result<Target<'a>, Refusal> {
        Ok(Target {
            shared,
            head,
            key: ObjectKey::new(&place.bucket, key)?,
            place,
            parameters,
            conditions: Conditions::parse(&head.headers)?,
        })
    }

    async fn get(&self) -> Result<Response<Body>, Refusal> {
        let properties = match self.parameters.needs_properties() {
            true => Some(self.shared.properties_in_force(&self.place.bucket).await?),
            false => None,
        };
        let quorum = self.quorum(properties.as_ref()).await?;
        let absence = properties.and_then(|properties| self.parameters.absence(&properties, quorum));
        let foreign = guard::foreign(&self.head.headers);
        let object = match self.head.method == Method::HEAD || foreign.is_some() {
            // Asking for the head alone runs no code, and neither does a page of another origin.
            true => self.read(quorum).await?,
            false => {
                let arguments = self.parameters.arguments.iter().cloned().map(Lua::Bytes).collect();
                let key = self.key.clone();
                let call = aso::call(self.shared, self.head, key, Ask::Get, arguments, quorum)?;
                match self.request(call).await? {
                    Reply::Object(object) => object,
                    Reply::Called(called) => return Ok(aso::answer(called.value)),
                    other => return Err(Shared::unexpected(&other)),
                }
            }
        };
        let object = match absence.filter(|_| object.is_unknown()) {
            Some(needed) => self.read(Quorum { r: Some(needed), ..quorum }).await?,
            None => object,
        };
        let wall_ms = self.shared.wall_ms();
        if let Some(origin) = foreign.filter(|_| object.active(wall_ms).is_some()) {
            let text = format!("a page of another origin ({origin}) may not run an active object");
            return Err(Refusal::new(StatusCode::FORBIDDEN, text));
        }
        let view = self.view(&object, wall_ms);
        let Some(&(newest, _)) = object.newest_live(wall_ms) else {
            return Ok(view.not_found());
        };
        let modified = representation::modified(newest);
        match self.conditions.of_read(object.etag(), modified) {
            Outcome::Proceed => {}
            Outcome::NotModified => return Ok(view.not_modified(newest)),
            Outcome::Failed => return Err(Refusal::condition()),
        }
        Ok(view.response(self.parameters.vtag.as_deref(), self.accept()))
    }

    /// `done` is the status for a body that shows one value.
    async fn put(&self, body: &mut Upload, done: StatusCode) -> Result<Response<Body>, Refusal> {
        self.parameters.check_write()?;
        let headers = stored_headers(&self.head.headers)?;
        let basis = self.basis()?;
        let expiry = self.expiry()?;
        let is_small = body.announced_bytes().is_some_and(|bytes| bytes <= SMALL_BYTES);
        let properties = match is_small && !self.parameters.needs_properties() {
            true => None,
            false => Some(self.shared.properties_in_force(&self.place.bucket).await?),
        };
        let quorum = self.quorum(properties.as_ref()).await?;
        let limit_bytes = properties.map_or(SMALL_BYTES, |properties| properties.value_bytes_max);
        let value = self.shared.read_body(body, limit_bytes).await?;
        let condition = self.condition(quorum).await?;
        let is_source = aso::is_source(&self.head.headers);
        let mutation = match is_source {
            true if condition == Condition::Always => {
                Mutation::Activate { source: value, expiry, keeps_state: false }
            }
            true => return Err(Refusal::bad_request("an active object is stored without conditions")),
            false => Mutation::Store { value, headers, basis, expiry, condition },
        };
        let updated = self.update(mutation, quorum, self.parameters.return_body).await?;
        if !updated.applied {
            return Err(Refusal::condition());
        }
        Ok(match updated.after {
            // An object that stays is asked with a get: its source is no answer to a write.
            Some(object) if !is_source && object.is_active(self.shared.wall_ms()) => bodiless(done),
            Some(object) => self.stored(&object, done),
            None => bodiless(done),
        })
    }

    async fn delete(&self) -> Result<Response<Body>, Refusal> {
        self.parameters.check_write()?;
        let quorum = self.quorum(None).await?;
        let condition = self.condition(quorum).await?;
        let mutation = Mutation::Delete { basis: self.seen()?.map_or(Basis::Local, Basis::Seen), condition };
        let updated = self.update(mutation, quorum, false).await?;
        match (updated.applied, condition) {
            (true, _) => Ok(bodiless(StatusCode::NO_CONTENT)),
            (false, Condition::Always) => Err(Refusal::new(StatusCode::NOT_FOUND, "not found")),
            (false, _) => Err(Refusal::condition()),
        }
    }

    /// The object as `returnbody` shows it; without a body if it has expired meanwhile.
    fn stored(&self, object: &Object, done: StatusCode) -> Response<Body> {
        let mut response = self.view(object, self.shared.wall_ms()).response(None, self.accept());
        match response.status() {
            StatusCode::OK => *response.status_mut() = done,
            StatusCode::NOT_FOUND => return bodiless(done),
            _ => {}
        }
        response
    }

    fn view<'b>(&'b self, object: &'b Object, wall_ms: u64) -> View<'b> {
        View { object, place: &self.place, binding: Binding::of(&self.key), wall_ms }
    }

    fn accept(&self) -> Accept {
        match accepts_multipart(&self.head.headers) {
            true => Accept::Multipart { boundary: self.shared.new_name() },
            false => Accept::List,
        }
    }

    /// What the write replaces. A tag that matches names one version of the object, siblings and all, as a context
    /// does; a date names none, because writes of one second share it.
    fn basis(&self) -> Result<Basis, Refusal> {
        let is_tag = matches!(self.conditions.of_write()?, WriteCheck::Condition(Condition::IfTag(_)));
        Ok(match self.seen()? {
            Some(seen) => Basis::Seen(seen),
            None if is_tag => Basis::Local,
            None => Basis::Unseen,
        })
    }

    fn seen(&self) -> Result<Option<VersionVector>, Refusal> {
        let header = self.head.headers.get(representation::VCLOCK);
        let binding = Binding::of(&self.key);
        Ok(header.map(|text| token::decode(text.as_bytes(), binding)).transpose()?)
    }

    /// The query's `ttl` goes before the header's.
    fn expiry(&self) -> Result<Expiry, Refusal> {
        let ttl_s = match (self.parameters.ttl_s, self.head.headers.get(TTL)) {
            (Some(seconds), _) => seconds,
            (None, Some(header)) => {
                parameters::ttl("X-Oort-TTL", &String::from_utf8_lossy(header.as_bytes()))?
            }
            (None, None) => return Ok(Expiry::Default),
        };
        Ok(Expiry::At(self.shared.wall_ms() + ttl_s * 1000))
    }

    /// The quorum numbers; the bucket is looked up only if they depend on it.
    async fn quorum(&self, properties: Option<&BucketProperties>) -> Result<Quorum, Refusal> {
        match properties {
            Some(properties) => self.parameters.quorum(properties),
            None if self.parameters.needs_properties() => {
                let properties = self.shared.properties_in_force(&self.place.bucket).await?;
                self.parameters.quorum(&properties)
            }
            None => self.parameters.quorum(&BucketProperties::default()),
        }
    }

    /// What the store is to check. Reads the object first if the condition is a date.
    async fn condition(&self, quorum: Quorum) -> Result<Condition, Refusal> {
        match self.conditions.of_write()? {
            WriteCheck::Condition(condition) => Ok(condition),
            WriteCheck::Never => Err(Refusal::condition()),
            WriteCheck::UnmodifiedSince(since) => {
                let object = self.read(quorum).await?;
                match object.newest_live(self.shared.wall_ms()) {
                    None => Ok(Condition::Always), // no date to compare: RFC 9110 §13.1.4 ignores the condition
                    Some((dot, _)) if representation::modified(*dot) > since => Err(Refusal::condition()),
                    Some(_) => Ok(Condition::IfTag(object.etag())),
                }
            }
        }
    }

    async fn read(&self, quorum: Quorum) -> Result<Object, Refusal> {
        let key = self.key.clone();
        match self.request(Operation::Get { key, quorum }).await? {
            Reply::Object(object) => Ok(object),
            other => Err(Shared::unexpected(&other)),
        }
    }

    async fn update(&self, mutation: Mutation, quorum: Quorum, after: bool) -> Result<Updated, Refusal> {
        let operation = Operation::Update {
            key: self.key.clone(),
            mutation,
            quorum,
            want: Want { before: false, after },
            caller: Some(Arc::new(aso::caller(self.shared, self.head)?)),
        };
        match self.request(operation).await? {
            Reply::Updated(updated) => Ok(updated),
            other => Err(Shared::unexpected(&other)),
        }
    }

    async fn request(&self, operation: Operation) -> Result<Reply, Refusal> {
        let request = Request { operation, timeout_ms: self.parameters.timeout_ms };
        Ok(self.shared.handle.request(request).await?)
    }
}

/// `done` without a body: 200 becomes 204.
fn bodiless(done: StatusCode) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = match done {
        StatusCode::OK => StatusCode::NO_CONTENT,
        _ => done,
    };
    response
}
